// Ties the page together: the models, the key, the chat and the live figures.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { Live } from "./live.js";

const MODEL_NAME = "stoker.model";

const api = new Api(askForKey);
const choice = document.getElementById("model");
const health = document.getElementById("health");
const model = () => choice.value;
const keyButton = document.getElementById("key-button");
keyButton.hidden = !api.key;
const live = new Live(api, { model, onChange });
const chat = new Chat(api, { model, hasTemplate: () => live.find(model())?.has_chat_template ?? null });

choice.addEventListener("change", () => {
  localStorage.setItem(MODEL_NAME, choice.value);
  live.show();
  chat.showMode();
  showHealth(live.models);
});

keyButton.addEventListener("click", async () => {
  const key = await askForKey("The key is sent with each request from this page.");
  if (key === null) return;
  api.key = key;
  await loadModels();
  live.schedule(0);
});

await loadModels();
live.schedule(0);
document.getElementById("prompt").focus();

async function loadModels() {
  try {
    const { data } = await api.json("v1/models");
    offerModels(data.map((entry) => entry.id));
  } catch (error) {
    setHealth("bad", error.message);
  }
}

function offerModels(names) {
  const known = [...choice.options].map((option) => option.value);
  if (choice.disabled || known.join("\n") !== names.join("\n")) {
    const wanted = choice.disabled ? localStorage.getItem(MODEL_NAME) : choice.value;
    choice.replaceChildren(...names.map((name) => new Option(name, name, false, name === wanted)));
    choice.disabled = names.length === 0;
  }
}

async function onChange(models) {
  if (models && choice.disabled) await loadModels(); // the server has come back
  showHealth(models);
  chat.showMode();
}

function showHealth(models) {
  const shown = models?.find((entry) => entry.name === model());
  if (!models) setHealth("bad", "Not connected");
  else if (!shown?.loaded) setHealth("", "Not loaded");
  else if (!shown.ready) setHealth("bad", "Starting again");
  else setHealth("good", "Ready");
}

function setHealth(kind, text) {
  health.className = `health ${kind}`;
  if (health.textContent !== text) health.textContent = text; // it is read out when it changes
}

// Resolves to the key, "" to forget it, or null if the dialog was cancelled.
function askForKey(message) {
  keyButton.hidden = false; // from now on it may be changed
  const dialog = document.getElementById("key-dialog");
  const field = document.getElementById("key");
  document.getElementById("key-note").textContent = `${message} It is kept until this tab is closed.`;
  field.value = api.key ?? "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    const cancel = document.getElementById("key-cancel");
    const done = (value) => {
      form.onsubmit = cancel.onclick = dialog.oncancel = null;
      dialog.close();
      resolve(value);
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      done(field.value.trim());
    };
    cancel.onclick = () => done(null);
    dialog.oncancel = () => done(null);
  });
}
