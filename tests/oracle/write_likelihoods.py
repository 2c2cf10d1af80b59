"""Writes tests/golden/models/MODEL.json again: what transformers in float32 makes of a real GGUF file.

Needs torch, transformers and accelerate (`make oracle`). The text and its token ids stay as they are.

    python tests/oracle/write_likelihoods.py MODEL PATH_OF_GGUF
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers


def main(model_name: str, path: Path) -> None:
    """Likelihoods are of tokens 2 to n, rounded to 4 decimals; the most likely token, of every position."""
    golden_path = Path(__file__).resolve().parents[1] / "golden" / "models" / f"{model_name}.json"
    golden = json.loads(golden_path.read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    token_ids = torch.tensor([golden["token_ids"]])
    with torch.no_grad():
        logits = model(token_ids).logits[0].double()
    likelihoods = logits.log_softmax(dim=-1)[:-1].gather(1, token_ids[0, 1:, None])[:, 0]
    golden["negative_log_likelihoods"] = [round(-value, 4) for value in likelihoods.tolist()]
    golden["most_likely"] = logits.argmax(dim=-1).tolist()
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    golden_path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
