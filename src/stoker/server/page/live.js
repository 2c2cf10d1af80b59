// The engine's figures, once a second while the page is seen. The server counts; rates are derived here.

import { element, number } from "./text.js";

const POLL_MS = 1000;
const LONGEST_PAUSE_MS = 8000; // between tries while the server does not answer
const SAMPLES = 60;
const LONGEST_PREFIX = 120; // characters of a prefix that fill three lines

export class Live {
  // model() is the chosen model's name; onChange(models) is called after each answer, null without one.
  constructor(api, { model, onChange }) {
    this.api = api;
    this.model = model;
    this.onChange = onChange;
    this.models = null; // the last answer's
    this.before = new Map(); // by model: {timeS, tokens} of the answer before, and `rates`, oldest first
    this.pauseMs = POLL_MS;
    this.timer = 0;
    this.isPolling = false;
    document.addEventListener("visibilitychange", () => this.schedule(0));
  }

  find(name) {
    return this.models?.find((model) => model.name === name) ?? null;
  }

  schedule(delayMs) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.poll(), delayMs);
  }

  async poll() {
    if (this.isPolling) return; // its end schedules the next
    this.isPolling = true;
    try {
      const stats = await this.api.json("stats", { mayAsk: false, signal: AbortSignal.timeout(5000) });
      this.models = stats.models;
      for (const model of stats.models) this.derive(model, stats.time_s);
      this.pauseMs = POLL_MS;
      this.show();
    } catch (error) {
      this.models = null;
      this.pauseMs = Math.min(this.pauseMs * 2, LONGEST_PAUSE_MS);
      this.showNote(error.status === 401 ? "Live figures need the API key."
        : `No live figures: ${error.name === "TimeoutError" ? "the server takes too long to answer." : error.message}`);
    } finally {
      this.isPolling = false;
      this.schedule(this.pauseMs);
    }
    this.onChange(this.models);
  }

  derive(model, timeS) {
    if (!model.stats) {
      this.before.delete(model.name);
      return;
    }
    const tokens = model.stats.generated_tokens;
    const before = this.before.get(model.name) ?? { rates: [], timeS: null, tokens };
    if (before.timeS !== null && timeS > before.timeS) {
      // Fewer tokens than before: the engine has started again, and counts from zero.
      before.rates.push(Math.max(0, tokens - before.tokens) / (timeS - before.timeS));
      if (before.rates.length > SAMPLES) before.rates.shift();
    }
    this.before.set(model.name, { rates: before.rates, timeS, tokens });
  }

  // --- what is seen ---

  show() {
    const model = this.find(this.model());
    if (!model) return this.showNote("No such model.");
    if (!model.loaded) return this.showNote(`${model.name} is not loaded. Its first request loads it.`);
    if (!model.stats) return this.showNote(model.error ?? "The engine does not answer.");
    this.showNote("");
    const { stats } = model;
    this.showSpeed(this.before.get(model.name).rates);
    this.set("running", stats.running);
    this.set("waiting", stats.waiting);
    const { prefix_queries_tokens: queried, prefix_hits_tokens: hit } = stats;
    this.text("hit-rate", queried ? `${Math.round(100 * hit / queried)}\u202f%` : "–");
    this.showBlocks(stats);
    this.showHottest(model.hottest);
    this.set("prompt-tokens", stats.prompt_tokens);
    this.set("hit-tokens", hit);
    this.set("generated-tokens", stats.generated_tokens);
    this.set("preemptions", stats.preemptions);
    this.set("evictions", stats.evictions);
    this.set("disk-blocks", stats.disk_blocks);
    this.set("disk-tokens", stats.disk_hits_tokens);
    this.set("disk-rejected", stats.disk_rejected);
    document.getElementById("rejected-row").hidden = stats.disk_rejected === 0;
  }

  showNote(text) {
    const note = document.getElementById("live-note");
    note.textContent = text;
    note.hidden = !text;
    document.getElementById("live-body").hidden = Boolean(text);
  }

  showSpeed(rates) {
    this.text("rate", rates.length ? number(Math.round(rates.at(-1))) : "–"); // two answers make a rate
    const peak = Math.max(0, ...rates);
    this.text("peak", peak >= 0.5 ? `highest ${number(Math.round(peak))}` : "");
    const scale = Math.max(peak, 1) * 1.1;
    const points = rates.map((rate, place) => {
      const x = 300 * (SAMPLES - rates.length + place) / (SAMPLES - 1);
      return `${x.toFixed(1)},${(48 - 46 * rate / scale).toFixed(1)}`;
    });
    const path = points.length > 1 ? `M${points.join("L")}` : "";
    const [area, line] = document.getElementById("spark").children;
    line.setAttribute("d", path);
    area.setAttribute("d", path && `${path}L300,48L${points[0].split(",")[0]},48Z`);
  }

  showBlocks({ blocks, blocks_held: held, blocks_cached: cached, blocks_free: free }) {
    this.text("blocks", `${number(blocks)} blocks`);
    const bar = document.getElementById("bar");
    [held, cached, free].forEach((count, place) => { bar.children[place].style.flexGrow = count; });
    bar.setAttribute("aria-label",
      `Of ${number(blocks)} blocks: ${number(held)} held by requests, ${number(cached)} cached, ${number(free)} free`);
    this.set("blocks-held", held);
    this.set("blocks-cached", cached);
    this.set("blocks-free", free);
  }

  showHottest(prefixes) {
    document.getElementById("no-prefix").hidden = prefixes.length > 0;
    const items = prefixes.map((prefix) => {
      const item = element("li");
      const [start, end] = startAndEnd(oneLine(prefix.head), oneLine(prefix.tail));
      const words = element("p", "words", start);
      if (end) words.append(element("span", "gap", " … "), end);
      const hits = `${number(prefix.hits)} ${prefix.hits === 1 ? "hit" : "hits"}`;
      item.append(words, element("p", "count", `${hits}, ${number(prefix.tokens)} tokens`));
      return item;
    });
    const list = document.getElementById("hottest");
    const isSame = items.length === list.children.length
      && items.every((item, place) => item.textContent === list.children[place].textContent);
    if (!isSame) list.replaceChildren(...items); // otherwise a selection or a reader's place would be lost
  }

  set(id, value) {
    this.text(id, number(value));
  }

  text(id, text) {
    const place = document.getElementById(id);
    if (place.textContent !== text) place.textContent = text;
  }
}

// Prefixes of one tree differ at their ends, so that is what must be seen: [start, end], end "" if start is all.
function startAndEnd(head, tail) {
  const all = tail ? head + tail : head;
  if (!tail && all.length <= LONGEST_PREFIX) return [all, ""];
  const start = head.slice(0, 64);
  const end = (tail || head).slice(-44);
  // Cut between words, where the text has any.
  const startEnds = head.length > 64 ? start.lastIndexOf(" ") : -1;
  const endStarts = end.indexOf(" ");
  return [start.slice(0, startEnds > 32 ? startEnds : 64).trimEnd(),
    end.slice(endStarts >= 0 && endStarts < 16 ? endStarts + 1 : 0).trimStart()];
}

function oneLine(text) {
  return text.replace(/\s*\n\s*/g, " ↵ ");
}
