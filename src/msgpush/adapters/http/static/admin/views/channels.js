// Channels: what one of them holds, and what comes to it now.
import { ask, listen, part } from "../api.js";
import { fill, h } from "../dom.js";
import { figure, t } from "../i18n.js";
import { Held } from "../held.js";
import { drawRow, showMessage, TYPES } from "../message.js";
import { choice, field, heading, nothing, options, refusal, status } from "../parts.js";
import { go } from "../router.js";
import { Rows } from "../rows.js";

const PAGE = 100;
const CALM = 100; // ms between two drawings of what comes: faster than anybody reads

export default function channels(root, { params, signal, onRecovery }) {
  const channel = params.channel ?? "";
  const mode = params.mode === "history" ? "history" : "live";
  const name = field(
    t("channels.channel"),
    h("input", {
      type: "search",
      value: channel,
      required: true,
      autocomplete: "off",
      spellcheck: "false",
      pattern: "[^\\s,*\\/?#]{1,200}",
      title: t("channels.rule"),
    }),
    { wide: true, hint: t("channels.hint") },
  );
  const body = h("div", {});
  let view = null;
  const open = (event) => {
    event.preventDefault();
    const wanted = name.control.value.trim();
    // What was closed is opened anew.
    if (wanted === channel) return view.again();
    go("channels", { channel: wanted, mode });
  };
  fill(
    root,
    heading("channels"),
    h(
      "form",
      { class: "row tools", role: "search", onsubmit: open },
      name.element,
      h("button", {}, t("channels.open")),
    ),
    body,
  );
  if (!channel)
    return fill(body, h("div", { class: "card" }, nothing(t("channels.none"), t("channels.none.hint"), "channels")));
  const tools = h(
    "div",
    { class: "row tools" },
    choice(
      t("channels.mode"),
      [
        ["live", t("channels.live")],
        ["history", t("channels.history")],
      ],
      mode,
      (chosen) => go("channels", { channel, mode: chosen }),
    ),
  );
  view = new Messages(tools);
  fill(body, view.element);
  signal.addEventListener("abort", () => view.close());
  return (mode === "live" ? tail : history)(view, { channel, signal, onRecovery });
}

/** The list of messages, its filter, and the one that is chosen. */
class Messages {
  held = new Held();
  #whole = h("section", { class: "card whole", "aria-label": t("message.title"), hidden: true });
  #none = h("div", {});
  said = status();
  /** Ask for what is shown once more. */
  again = () => {};

  constructor(tools) {
    this.tools = tools;
    this.rows = new Rows({
      label: t("channels.list"),
      range: () => this.held.range(),
      at: (n) => this.held.at(n),
      draw: drawRow,
      chosen: (n) => this.#choose(n),
    });
    this.text = h("input", {
      type: "search",
      placeholder: t("channels.filter"),
      "aria-label": t("channels.filter"),
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.#filter(),
    });
    this.type = h(
      "select",
      { "aria-label": t("channels.type"), onchange: () => this.#filter() },
      options([["", t("channels.type.all")], ...TYPES.map((type) => [type, type])], ""),
    );
    for (const option of [...this.type.options].slice(1)) option.translate = false;
    tools.append(this.text, this.type);
    this.list = h("section", { class: "card list", "aria-label": t("channels.list") }, this.rows.element, this.#none);
    this.foot = h("div", { class: "row" });
    this.element = h(
      "div",
      {},
      tools,
      this.said.element,
      h("div", { class: "split" }, h("div", {}, this.list, this.foot), this.#whole),
    );
    this.hint = t("channels.quiet");
    this.changed();
  }

  changed() {
    const empty = !this.held.length;
    if (empty !== this.rows.element.hidden || !this.#none.firstChild) {
      this.rows.element.hidden = empty;
      fill(
        this.#none,
        empty &&
          nothing(
            this.filtered ? t("channels.filtered") : t("channels.empty"),
            this.filtered ? t("channels.filtered.hint") : this.hint,
          ),
      );
    }
    this.rows.soon(CALM);
  }

  clear() {
    this.held.clear();
    this.rows.forget();
    this.#whole.hidden = true;
    this.changed();
  }

  refuse(problem) {
    fill(this.list, refusal(problem));
  }

  /** Show the list, whatever stood in its place. */
  restore() {
    if (!this.list.contains(this.rows.element)) fill(this.list, this.rows.element, this.#none);
  }

  close() {
    this.rows.close();
  }

  get filtered() {
    return Boolean(this.text.value || this.type.value);
  }

  #filter() {
    const wanted = this.text.value.toLowerCase();
    const type = this.type.value;
    this.held.filter(
      ({ message, text }) => (!type || message.type === type) && (!wanted || text.toLowerCase().includes(wanted)),
    );
    this.rows.forget();
    fill(this.#none);
    this.changed();
  }

  #choose(n) {
    const entry = this.held.at(n);
    if (!entry) return;
    this.#whole.hidden = false;
    showMessage(this.#whole, entry);
  }
}

/** What comes to the channel, from its newest messages on. */
async function tail(view, { channel, signal, onRecovery }) {
  const state = h("span", { class: "pill", role: "status" });
  const speed = h("span", { class: "quiet tabular" });
  const pause = h(
    "button",
    { type: "button", class: "plain", "aria-pressed": "false", onclick: () => hold(!paused) },
    t("channels.pause"),
  );
  const clear = h("button", { type: "button", class: "plain", onclick: () => view.clear() }, t("channels.clear"));
  view.tools.append(pause, clear, state, speed);
  let client = null;
  let paused = false;
  let late = new Held();
  let missed = 0;
  let heard = 0;

  const say = (kind) => {
    state.className = `pill ${kind}`;
    state.textContent = t(`tail.${kind}`);
  };

  function hold(on) {
    paused = on;
    pause.setAttribute("aria-pressed", String(on));
    pause.textContent = t(on ? "channels.resume" : "channels.pause");
    if (on) return;
    const [first, last] = late.range();
    for (let n = first; n <= last; n++) view.held.push(late.at(n).message);
    late = new Held();
    missed = 0;
    view.said.say();
    view.said.element.removeAttribute("aria-live");
    view.rows.top();
    view.changed();
  }

  function take(message) {
    heard++;
    if (paused) {
      late.push(message);
      missed++;
      return;
    }
    view.held.push(message);
    view.changed();
  }

  /** The session may have ended: whoever asks for something is told so, and signs in again. */
  function asked() {
    ask("api/v1/connections/stats", { signal }).catch(() => {});
  }

  async function begin() {
    client?.close();
    client = null;
    say("connecting");
    let history;
    try {
      history = await ask(`api/v1/channels/${part(channel)}/messages`, { query: { last: PAGE }, signal });
    } catch (problem) {
      if (signal.aborted) return;
      say("closed");
      return view.refuse(problem);
    }
    if (signal.aborted) return;
    view.restore();
    view.clear();
    for (const message of history.messages) view.held.push(message);
    view.changed();
    // From where that has ended: nothing is left out between the two.
    client = listen([channel], { since: history.cursor });
    client.on("open", () => say("live"));
    client.on("close", ({ reconnect }) => {
      say(reconnect ? "reconnecting" : "closed");
      if (reconnect) return;
      client = null;
      asked();
    });
    client.on("message", take);
    client.on("gap", (gap) => take({ gap, at: new Date() }));
    client.on("error", (error) => /401/.test(error.message) && asked());
  }

  let told = performance.now();
  const ticks = setInterval(() => {
    // A page that nobody sees is called once a minute, not once a second.
    const seconds = (performance.now() - told) / 1000;
    told += seconds * 1000;
    speed.textContent = t("channels.speed", { n: figure(Math.round(heard / seconds)) });
    heard = 0;
    if (!paused || !missed) return;
    view.said.say(t("channels.late", { n: missed }));
    // Screen readers say it once, not every second.
    view.said.element.setAttribute("aria-live", "off");
  }, 1000);
  signal.addEventListener("abort", () => {
    clearInterval(ticks);
    client?.close();
  });
  view.again = () => client ?? begin();
  onRecovery(view.again);
  await begin();
}

/** What is kept of the channel, a page at a time, from the oldest on or the newest alone. */
async function history(view, { channel, signal, onRecovery }) {
  const button = (key, act) => h("button", { type: "button", class: "plain small", onclick: act }, t(key));
  const oldest = button("history.oldest", () => load(null));
  const newest = button("history.newest", () => load(undefined));
  const next = button("page.next", () => load(cursor));
  fill(view.foot, oldest, next, newest);
  let cursor = null;
  let asked;
  let turn = 0;
  view.hint = t("channels.kept");

  async function load(after) {
    asked = after;
    const mine = ++turn;
    const query = after === undefined ? { last: PAGE } : { after, limit: PAGE };
    let page;
    try {
      page = await ask(`api/v1/channels/${part(channel)}/messages`, { query, signal });
    } catch (problem) {
      if (!signal.aborted && mine === turn) view.refuse(problem);
      return;
    }
    if (signal.aborted || mine !== turn) return;
    cursor = page.cursor;
    view.restore();
    view.clear();
    for (const message of page.messages) view.held.push(message);
    view.changed();
    view.rows.top();
    next.disabled = after === undefined || page.messages.length < PAGE;
    view.said.say(
      t(after === undefined ? "history.shown.newest" : "history.shown", { n: page.messages.length }),
      page.gap && [" ", t(`gap.${page.gap.reason}`)],
    );
  }

  view.again = () => load(asked);
  onRecovery(view.again);
  await load(undefined);
}
