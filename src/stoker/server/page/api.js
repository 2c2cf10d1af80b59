// The server this page came from: requests with the API key, errors in one form, streams as they come.

const KEY_NAME = "stoker.api-key";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: the server was not reached
  }
}

export class Api {
  // askForKey(message) resolves to a key, or to null if the user would rather not.
  constructor(askForKey) {
    this.askForKey = askForKey;
    this.asking = null; // one question at a time, however many requests were refused
  }

  get key() {
    return sessionStorage.getItem(KEY_NAME);
  }

  set key(key) {
    if (key) sessionStorage.setItem(KEY_NAME, key);
    else sessionStorage.removeItem(KEY_NAME);
  }

  // The response to GET path, or to POST if there is a body. Throws ApiError; an abort passes as it is.
  async fetch(path, { body, signal, mayAsk = true } = {}) {
    for (;;) {
      const key = this.key;
      const headers = key ? { Authorization: `Bearer ${key}` } : {};
      if (body !== undefined) headers["Content-Type"] = "application/json";
      let response;
      try {
        response = await fetch(path, {
          method: body === undefined ? "GET" : "POST",
          headers,
          body: body === undefined ? undefined : JSON.stringify(body),
          signal,
          cache: "no-store",
        });
      } catch (error) {
        if (error.name === "AbortError" || error.name === "TimeoutError") throw error;
        throw new ApiError("The server was not reached.", 0);
      }
      if (response.ok) return response;
      const refusal = await readError(response);
      if (response.status !== 401 || !mayAsk || !(await this.newKey(key))) throw refusal;
    }
  }

  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }

  // True if there is another key than the one that was refused.
  async newKey(refused) {
    if (this.key !== refused) return true;
    const message = refused ? "The server did not accept this key." : "This server asks for a key.";
    this.asking ??= this.askForKey(message).finally(() => { this.asking = null; });
    const key = await this.asking;
    if (key) this.key = key;
    return Boolean(key);
  }

  // The JSON objects of a streamed answer, as they come. Throws ApiError for an error in the stream.
  async *stream(path, body, signal) {
    const response = await this.fetch(path, { body, signal });
    for await (const data of serverSentData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message ?? "The answer broke off.", 200);
      yield chunk;
    }
    throw new ApiError("The answer broke off before its end.", 200);
  }
}

async function readError(response) {
  let message = "";
  try {
    message = (await response.json()).error?.message ?? "";
  } catch {
    // not JSON, so not from our server: the status says what there is to say
  }
  return new ApiError(message || `The server answered ${response.status} ${response.statusText}`.trim() + ".",
    response.status);
}

// The data of each event of a text/event-stream.
async function* serverSentData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    // Also when the reader stopped half way: the server then hears that nobody listens.
    await reader.cancel().catch(() => undefined);
  }
}
