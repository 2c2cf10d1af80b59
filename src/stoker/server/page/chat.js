// The conversation: sends it, shows the answer as it comes, and says what the answer cost.

import { duration, element, number, showText } from "./text.js";

const SETTINGS_NAME = "stoker.settings";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens"];
const LARGEST_SEED = 2 ** 32; // of those drawn here: short enough to be read out
const LONG_TEXT = 20000; // characters from which on redrawing each frame would be felt

export class Chat {
  // model() is the chosen model's name; hasTemplate() is false for a base model, null where it is not known yet.
  constructor(api, { model, hasTemplate }) {
    this.api = api;
    this.model = model;
    this.hasTemplate = hasTemplate;
    this.turns = []; // {role, content} in their order: what the next request is made of
    this.answering = null; // the AbortController of the answer under way
    const find = (id) => document.getElementById(id);
    this.view = {
      chat: find("chat"), form: find("composer"), prompt: find("prompt"), label: find("prompt-label"), send: find("send"),
      stop: find("stop"), messages: find("messages"), scroll: find("scroll"), welcome: find("welcome"),
      announcement: find("announcement"), settings: find("settings"), settingsButton: find("settings-button"), systemField: find("system-field"),
    };
    this.listen(find);
    this.restoreSettings();
  }

  listen(find) {
    const { form, prompt, stop } = this.view;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    form.addEventListener("invalid", () => this.showSettings(true), true);
    form.addEventListener("change", () => this.saveSettings());
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    stop.addEventListener("click", () => this.stop());
    find("new-chat").addEventListener("click", () => this.clear());
    this.view.settingsButton.addEventListener("click", () => this.showSettings(this.view.settings.hidden));
    find("reset").addEventListener("click", () => this.resetSettings());
  }

  // --- what the user does ---

  submit() {
    const text = this.view.prompt.value;
    if (this.answering || !text.trim()) return;
    this.view.prompt.value = "";
    this.turns.push({ role: "user", content: text });
    const { said } = this.addMessage("user", "You");
    said.textContent = text;
    this.answer();
  }

  stop() {
    this.answering?.abort();
  }

  clear() {
    this.stop();
    this.answering = null; // what is still under way belongs to the old conversation
    this.turns = [];
    this.view.messages.replaceChildren();
    this.view.welcome.hidden = false;
    this.showAnswering(false);
    this.announce("New chat");
    this.view.prompt.focus();
  }

  showMode() {
    const plain = this.hasTemplate() === false;
    const label = plain ? "Text to continue (this model has no chat template)" : "Message";
    if (this.view.label.textContent === label) return;
    this.view.label.textContent = label;
    this.view.prompt.placeholder = label;
    this.view.systemField.hidden = plain;
  }

  // --- an answer ---

  async answer() {
    const mine = new AbortController();
    this.answering = mine;
    this.showAnswering(true);
    const turns = this.turns;
    const message = this.addMessage("assistant", this.model());
    const answer = { text: "", usage: null, reason: null, seed: this.seed(), startedMs: performance.now(), firstMs: null };
    message.item.setAttribute("aria-busy", "true");
    try {
      await this.read(answer, message, turns, mine.signal);
    } catch (error) {
      if (mine.signal.aborted) answer.reason = "stopped";
      else answer.error = error;
    }
    answer.endedMs = performance.now();
    if (answer.text || !answer.error) turns.push({ role: "assistant", content: answer.text });
    this.draw(message, answer, true);
    message.item.setAttribute("aria-busy", "false");
    this.showFacts(message, answer);
    if (answer.error) this.showError(message, answer.error, turns);
    if (this.answering !== mine) return;
    this.answering = null;
    this.showAnswering(false);
    this.announce(answer.error ? `Error: ${answer.error.message}`
      : answer.reason === "stopped" ? "Stopped" : `Answer complete: ${answer.text}`);
  }

  async read(answer, message, turns, signal) {
    let plain = this.hasTemplate() === false;
    for (;;) {
      try {
        const [path, body] = plain ? this.plainRequest(turns, answer.seed) : this.chatRequest(turns, answer.seed);
        for await (const chunk of this.api.stream(path, body, signal)) this.take(answer, message, chunk);
        return;
      } catch (error) {
        // A base model that was not loaded yet: only now is it known that it takes no messages.
        if (plain || error.status !== 400 || (await this.askAgain()) !== false) throw error;
        plain = true;
      }
    }
  }

  async askAgain() {
    if (this.hasTemplate() === null) await new Promise((resolve) => setTimeout(resolve, 1500)); // the next poll knows
    return this.hasTemplate();
  }

  chatRequest(turns, seed) {
    const system = this.view.form.elements.system.value;
    const messages = system.trim() ? [{ role: "system", content: system }, ...turns] : turns;
    return ["v1/chat/completions", { ...this.parameters(seed), messages }];
  }

  plainRequest(turns, seed) {
    const prompt = turns.map((turn) => turn.content).join("");
    return ["v1/completions", { max_tokens: 256, ...this.parameters(seed), prompt }]; // it seldom ends by itself
  }

  take(answer, message, chunk) {
    if (chunk.usage) answer.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const text = choice.delta?.content ?? choice.text ?? "";
    if (text) {
      answer.firstMs ??= performance.now();
      answer.text += text;
      this.draw(message, answer, false);
    }
    if (choice.finish_reason) answer.reason = choice.finish_reason;
  }

  // --- settings ---

  parameters(seed) {
    const parameters = { model: this.model(), stream: true, stream_options: { include_usage: true }, seed };
    for (const name of NUMBERS) {
      const value = this.view.form.elements[name].valueAsNumber;
      if (!Number.isNaN(value)) parameters[name] = value;
    }
    return parameters;
  }

  seed() {
    const given = this.view.form.elements.seed.valueAsNumber;
    return Number.isNaN(given) ? Math.floor(Math.random() * LARGEST_SEED) : given;
  }

  showSettings(areShown) {
    this.view.settings.hidden = !areShown;
    this.view.settingsButton.setAttribute("aria-expanded", String(areShown));
  }

  saveSettings() {
    const { elements } = this.view.form;
    const values = Object.fromEntries([...NUMBERS, "seed", "system"].map((name) => [name, elements[name].value]));
    localStorage.setItem(SETTINGS_NAME, JSON.stringify(values));
  }

  restoreSettings() {
    let values = {};
    try {
      values = JSON.parse(localStorage.getItem(SETTINGS_NAME)) ?? {};
    } catch {
      localStorage.removeItem(SETTINGS_NAME); // something else wrote there
    }
    for (const name of [...NUMBERS, "seed", "system"]) this.view.form.elements[name].value = values[name] ?? "";
  }

  resetSettings() {
    localStorage.removeItem(SETTINGS_NAME);
    this.restoreSettings();
    this.announce("Settings are reset");
  }

  // --- what is seen ---

  addMessage(role, name) {
    this.view.welcome.hidden = true;
    const item = element("li", `message ${role}`);
    const said = element("div", "said");
    item.append(element("h3", "", name), said);
    this.view.messages.append(item);
    this.scrollToEnd();
    return { item, said, drawnMs: 0, frame: 0 };
  }

  draw(message, answer, now) {
    const show = () => {
      message.frame = 0;
      message.drawnMs = performance.now();
      const follows = this.isAtEnd();
      showText(message.said, answer.text);
      if (follows) this.scrollToEnd();
    };
    if (now) {
      cancelAnimationFrame(message.frame);
      show();
    } else if (!message.frame && (answer.text.length < LONG_TEXT || performance.now() - message.drawnMs > 500)) {
      message.frame = requestAnimationFrame(show);
    }
  }

  showFacts(message, answer) {
    const facts = element("p", "facts");
    const add = (text) => facts.append(element("span", "", text));
    const { usage, firstMs, startedMs, endedMs } = answer;
    if (usage) {
      add(`${number(usage.completion_tokens)} tokens`);
      if (usage.completion_tokens > 1 && endedMs > firstMs) {
        add(`${number((usage.completion_tokens - 1) / (endedMs - firstMs) * 1000)} tokens/s`);
      }
    }
    if (firstMs !== null) add(`first after ${duration(firstMs - startedMs)}`);
    if (usage) {
      const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
      add(`${number(cached)} of ${number(usage.prompt_tokens)} prompt tokens cached`);
    }
    if (answer.reason === "length") add("cut off at the limit");
    if (answer.reason === "stopped") add("stopped");
    const seed = element("button", "text", `seed ${answer.seed}`);
    seed.type = "button";
    seed.title = "Use this seed for the next answers";
    seed.addEventListener("click", () => {
      this.view.form.elements.seed.value = answer.seed;
      this.saveSettings();
      this.announce(`Seed ${answer.seed} is set`);
    });
    const copy = element("button", "text", "copy");
    copy.type = "button";
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(answer.text);
      this.announce("Copied");
    });
    facts.append(seed);
    if (answer.text && navigator.clipboard) facts.append(copy); // browsers have none on a page without TLS
    if (answer.text || !answer.error) message.item.append(facts);
    if (this.isAtEnd(120)) this.scrollToEnd();
  }

  showError(message, error, turns) {
    if (!message.said.textContent) message.said.remove();
    const note = element("p", "note error", error.message);
    const again = element("button", "text", "Try again");
    again.type = "button";
    again.addEventListener("click", () => {
      if (this.answering || this.turns !== turns) return;
      if (turns.at(-1)?.role === "assistant") turns.pop();
      message.item.remove();
      this.answer();
      this.view.prompt.focus();
    });
    note.append(again);
    message.item.append(note);
    this.scrollToEnd();
  }

  showAnswering(isAnswering) {
    const { send, stop, prompt } = this.view;
    const hadFocus = document.activeElement === send || document.activeElement === stop;
    send.hidden = isAnswering;
    stop.hidden = !isAnswering;
    if (isAnswering) this.announce("Answering");
    if (hadFocus) (isAnswering ? stop : prompt).focus();
  }

  announce(text) {
    this.view.announcement.textContent = text;
  }

  // Wide, the conversation scrolls by itself; narrow, the whole page does, as page.css has it.

  get isNarrow() {
    return matchMedia("(max-width: 60rem)").matches;
  }

  isAtEnd(slack = 48) {
    const { scroll, chat } = this.view;
    if (this.isNarrow) return chat.getBoundingClientRect().bottom < window.innerHeight + slack;
    return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < slack;
  }

  scrollToEnd() {
    const { scroll, chat } = this.view;
    if (this.isNarrow) chat.scrollIntoView({ block: "end" });
    else scroll.scrollTop = scroll.scrollHeight;
  }
}
