"""Model files: finding and fetching them, reading them, packing their tensors for the kernels.

- ``store.resolve(name_or_path)`` → path; ``store.list_models()``; ``pull.pull(name)``
- ``gguf.GGUFFile.open(path)`` → metadata and mapped tensors
- ``inspect.describe(file)`` → what ``stoker inspect`` shows
"""
