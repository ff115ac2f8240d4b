// Publish: a form and the message's JSON beside it, each made from the other; checked as the API does.
import { ask, BASE, shownToken } from "../api.js";
import { fill, h } from "../dom.js";
import { t } from "../i18n.js";
import { keep, kept } from "../memory.js";
import { choice, copyButton, facts, field, heading, options, refusal } from "../parts.js";
import { note, to } from "../router.js";
import { faultsOf } from "../schema.js";
import { code, data } from "../text.js";

const TYPES = ["info", "progress", "status", "success", "warning", "error", "custom"];
const PRIORITIES = ["low", "normal", "high", "urgent"];
const EXAMPLE = { type: "info", service: "operator", channels: ["demo"], data: { text: "Hello" } };
const ORDER = ["id", "timestamp", "type", "service", "source", "target", "channels", "data", "metadata"];
const PATHS = { send: "api/v1/messages/send", broadcast: "api/v1/messages/broadcast" };

let described = null;
/** The API's own description, read once. */
async function description(signal) {
  described ??= await ask("openapi.json", { signal });
  return described;
}

export default async function publish(root, { params, signal, onRecovery }) {
  let mode = params.mode === "broadcast" ? "broadcast" : "send";
  let message = {};
  const form = new Form((changed) => {
    message = ordered(changed);
    text.control.value = pretty(message);
    check();
  });
  const text = field(
    t("publish.json"),
    h("textarea", {
      class: "mono",
      rows: "20",
      spellcheck: "false",
      autocomplete: "off",
      translate: "no",
      oninput: () => typed(),
    }),
  );
  const others = h("ul", { class: "wrong" });
  const answer = h("div", { role: "status" });
  const button = h("button", {}, t("publish.send"));
  const modes = choice(
    t("publish.mode"),
    [
      ["send", t("publish.to")],
      ["broadcast", t("publish.everybody")],
    ],
    mode,
    (chosen) => {
      mode = chosen;
      note("publish", { mode });
      if (mode === "broadcast" && message.target) {
        delete message.target;
        delete message.channels;
      }
      form.show(message, mode);
      text.control.value = pretty(message);
      check();
    },
  );
  fill(
    root,
    heading("publish"),
    h(
      "form",
      { novalidate: true, onsubmit: send },
      h("div", { class: "row tools" }, modes),
      h(
        "div",
        { class: "split even" },
        h("section", { class: "card stack", "aria-label": t("publish.form") }, form.element),
        h("section", { class: "card stack", "aria-label": t("publish.json") }, text.element, others),
      ),
      h(
        "div",
        { class: "row" },
        button,
        copyButton(t("publish.curl"), () => curl(mode, text.control.value), ""),
        copyButton(t("copy.json"), () => text.control.value, ""),
      ),
    ),
    answer,
  );
  const draft = kept("draft");
  keep("draft", null);
  text.control.value = draft ?? pretty(mode === "broadcast" ? { ...EXAMPLE, channels: undefined } : EXAMPLE);
  typed();
  onRecovery(() => described || begin());
  await begin();

  async function begin() {
    await description(signal).catch(() => {}); // without it the service alone checks
    if (!signal.aborted) check();
  }

  function typed() {
    let read;
    try {
      read = JSON.parse(text.control.value);
    } catch (error) {
      text.complain(t("publish.no.json", { why: error.message }));
      return;
    }
    if (read === null || typeof read !== "object" || Array.isArray(read)) return text.complain(t("publish.no.object"));
    text.complain("");
    message = read;
    form.show(message, mode);
    check();
  }

  function check() {
    text.complain("");
    const schema = described?.paths?.[`/${PATHS[mode]}`]?.post.requestBody.content["application/json"].schema;
    tell(
      schema
        ? faultsOf(schema, message, described).map((fault) => ({
            pointer: fault.pointer,
            detail: t(fault.key, fault.given),
          }))
        : [],
    );
  }

  /** Show faults at the fields that their pointers name, and the others below the JSON. */
  function tell(faults) {
    const rest = form.complain(faults);
    fill(
      others,
      rest
        .slice(0, 10)
        .map((fault) => h("li", {}, fault.pointer && [code(fault.pointer), " "], data(fault.detail, 400, "span"))),
    );
  }

  async function send(event) {
    event.preventDefault();
    try {
      JSON.parse(text.control.value);
    } catch {
      return text.control.focus();
    }
    button.disabled = true;
    try {
      const told = await ask(PATHS[mode], { method: "POST", body: text.control.value, signal });
      tell([]);
      const acked = message.metadata?.ack && message.service;
      fill(
        answer,
        h(
          "section",
          { class: "notice good" },
          h("h2", {}, t(told.duplicate ? "publish.duplicate" : "publish.done")),
          facts([
            [t("message.id"), code(told.id, 130)],
            [
              t("message.channels"),
              told.channels.map((name) =>
                h("a", { class: "chip", href: to("channels", { channel: name }) }, data(name, 80)),
              ),
            ],
            [t("publish.cursor"), code(told.cursor, 130)],
          ]),
          acked &&
            h(
              "a",
              { href: to("delivery", { tab: "message", service: message.service, id: told.id }) },
              t("message.delivery"),
            ),
        ),
      );
    } catch (problem) {
      if (signal.aborted) return;
      fill(answer, refusal(problem));
      if (problem.errors?.length) {
        tell(problem.errors);
        form.focusFirst();
      }
    } finally {
      button.disabled = false;
    }
  }
}

const pretty = (message) => JSON.stringify(message, null, 2);

function ordered(message) {
  const known = ORDER.filter((name) => message[name] !== undefined).map((name) => [name, message[name]]);
  return Object.fromEntries([...known, ...Object.entries(message).filter(([name]) => !ORDER.includes(name))]);
}

const quoted = (text) => (/^[\w%+=:,./@-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`);

function curl(mode, text) {
  let body = text;
  try {
    body = JSON.stringify(JSON.parse(text));
  } catch {
    // As it stands.
  }
  // Never the token itself: this is to be pasted elsewhere.
  const header = shownToken() ? ' -H "Authorization: Bearer $TOKEN"' : "";
  return `curl${header} ${quoted(new URL(PATHS[mode], BASE).href)} \\\n  -d ${quoted(body)}`;
}

/** The fields of a message. `changed` is called with the whole message whenever one is edited. */
class Form {
  #message = {};
  #fields = {};
  #targets = h("div", { class: "stack" });
  #terms;
  #where;

  constructor(changed) {
    this.changed = changed;
    const input = (attributes = {}) =>
      h("input", { autocomplete: "off", spellcheck: "false", oninput: () => this.#read(), ...attributes });
    const make = (pointer, key, control, more = {}) => (this.#fields[pointer] = field(t(key), control, more)).element;
    const select = (pairs, value) => h("select", { onchange: () => this.#read() }, options(pairs, value));
    const raw = (names) => names.map((name) => [name, name]);
    const type = select(raw(TYPES), "info");
    const priority = select([["", t("publish.default")], ...raw(PRIORITIES)], "");
    for (const option of [...type.options, ...[...priority.options].slice(1)]) option.translate = false;
    const top = h(
      "div",
      { class: "pair" },
      make("/type", "message.type", type),
      make("/service", "message.service", input()),
    );
    this.#where = h(
      "fieldset",
      { class: "stack" },
      h("legend", {}, t("message.target")),
      this.#targets,
      (this.#fields["/target"] = this.#orphan()).element,
      h(
        "button",
        { type: "button", class: "plain small", onclick: () => this.#addTarget("", "", true) },
        t("publish.target.add"),
      ),
    );
    const channels = make("/channels", "message.channels", input(), { hint: t("publish.channels.hint") });
    const body = make(
      "/data",
      "publish.data",
      h("textarea", { class: "mono", rows: "5", spellcheck: "false", translate: "no", oninput: () => this.#read() }),
      { hint: t("publish.data.hint") },
    );
    const meta = h(
      "div",
      { class: "pair" },
      make("/metadata/priority", "message.priority", priority),
      make("/metadata/ttl", "publish.ttl", input({ type: "number", min: "1", max: "604800", inputmode: "numeric" })),
    );
    this.ack = h("input", { type: "checkbox", onchange: () => this.#read() });
    this.receipt = h("input", { type: "checkbox", onchange: () => this.#read() });
    this.#terms = h(
      "div",
      { class: "stack terms", hidden: true },
      h(
        "div",
        { class: "pair" },
        make(
          "/metadata/ack/deadline",
          "publish.deadline",
          input({ type: "number", min: "1", max: "86400", placeholder: "30" }),
        ),
        make(
          "/metadata/ack/deliveries",
          "publish.deliveries",
          input({ type: "number", min: "1", max: "20", placeholder: "5" }),
        ),
      ),
      make("/metadata/ack/collapse", "publish.collapse", input(), { hint: t("publish.collapse.hint") }),
      h("label", { class: "check" }, this.receipt, t("publish.receipt")),
    );
    const more = h(
      "details",
      {},
      h("summary", {}, t("publish.more")),
      h(
        "div",
        { class: "stack" },
        make("/id", "message.id", input(), { hint: t("publish.id.hint") }),
        make("/source", "message.source", input()),
        make("/timestamp", "message.time", input({ placeholder: "2026-01-31T12:00:00Z" })),
      ),
    );
    this.element = [
      top,
      this.#where,
      channels,
      body,
      meta,
      h("label", { class: "check" }, this.ack, t("publish.ack")),
      (this.#fields["/metadata/ack"] = this.#orphan()).element,
      this.#terms,
      more,
    ];
  }

  /** Put a message into the fields, but for the one that is being edited. */
  show(message, mode) {
    this.#message = message;
    this.#where.hidden = mode === "broadcast";
    const put = (pointer, value) => {
      const { control } = this.#fields[pointer];
      const shown = value === undefined || value === null ? "" : String(value);
      if (control !== document.activeElement && control.value !== shown) control.value = shown;
    };
    const { metadata } = message;
    put("/type", TYPES.includes(message.type) ? message.type : "");
    for (const name of ["service", "source", "id", "timestamp"])
      put(`/${name}`, typeof message[name] === "string" ? message[name] : "");
    put("/channels", Array.isArray(message.channels) ? message.channels.join(", ") : "");
    put("/data", message.data === undefined ? "" : pretty(message.data));
    put("/metadata/priority", metadata?.priority);
    put("/metadata/ttl", metadata?.ttl);
    const ack = metadata?.ack;
    this.ack.checked = Boolean(ack);
    this.#terms.hidden = !ack;
    for (const name of ["deadline", "deliveries", "collapse"]) put(`/metadata/ack/${name}`, ack?.[name]);
    this.receipt.checked = Boolean(ack?.receipt);
    if (!this.#targets.contains(document.activeElement)) {
      this.#targets.replaceChildren();
      const target = message.target && typeof message.target === "object" ? message.target : {};
      for (const [name, value] of Object.entries(target))
        this.#addTarget(name.replace(/_id$/, ""), String(value ?? ""));
      if (!this.#targets.children.length) this.#addTarget("user", "");
    }
  }

  /** Show faults at their fields; those that have none are returned. */
  complain(faults) {
    const texts = new Map();
    const rest = [];
    for (const { pointer, detail } of faults) {
      let at = pointer;
      while (at && !this.#place(at)) at = at.slice(0, at.lastIndexOf("/"));
      const place = at && this.#place(at);
      if (!place || !place.element.checkVisibility?.()) rest.push({ pointer, detail });
      else
        texts.set(place, [
          ...(texts.get(place) ?? []),
          at === pointer ? detail : `${pointer.slice(at.length)}: ${detail}`,
        ]);
    }
    for (const each of this.#all()) each.complain((texts.get(each) ?? []).join(" "));
    return rest;
  }

  focusFirst() {
    this.#all()
      .find(({ control }) => control.getAttribute?.("aria-invalid"))
      ?.control.focus();
  }

  #all() {
    return [...Object.values(this.#fields), ...[...this.#targets.children].map((row) => row.place)];
  }

  #place(pointer) {
    const row = [...this.#targets.children].find((each) => pointer === `/target/${each.kind.value.trim()}_id`);
    return row?.place ?? this.#fields[pointer];
  }

  /** A place for what is wrong where no field of its own is. */
  #orphan() {
    const line = h("p", { class: "wrong", hidden: true });
    return { element: line, control: line, complain: (text) => ((line.textContent = text), (line.hidden = !text)) };
  }

  #addTarget(kind, value, focus) {
    const input = (text, label) =>
      h("input", {
        value: text,
        "aria-label": label,
        placeholder: label,
        autocomplete: "off",
        spellcheck: "false",
        oninput: () => this.#read(),
      });
    const row = h("div", { class: "targets" });
    row.kind = input(kind, t("publish.target.kind"));
    row.name = input(value, t("publish.target.value"));
    const wrong = h("p", { class: "wrong", hidden: true });
    const remove = h(
      "button",
      { type: "button", class: "plain small", onclick: () => (row.remove(), this.#read()) },
      "×",
      h("span", { class: "away" }, t("publish.target.remove")),
    );
    row.append(row.kind, row.name, remove, wrong);
    row.place = {
      element: row,
      control: row.name,
      complain(text) {
        wrong.textContent = text;
        wrong.hidden = !text;
        if (text) row.name.setAttribute("aria-invalid", "true");
        else row.name.removeAttribute("aria-invalid");
      },
    };
    this.#targets.append(row);
    if (focus) row.kind.focus();
  }

  /** The message that the fields say; what they have no field for stays as it was. */
  #read() {
    const value = (pointer) => this.#fields[pointer].control.value.trim();
    const number = (pointer) => (value(pointer) === "" ? undefined : Number(value(pointer)));
    const message = { ...this.#message, type: value("/type"), service: value("/service") };
    for (const name of ["source", "id", "timestamp"]) message[name] = value(`/${name}`) || undefined;
    const targets = [...this.#targets.children]
      .map((row) => [row.kind.value.trim(), row.name.value.trim()])
      .filter(([kind, name]) => kind && name);
    message.target =
      targets.length && !this.#where.hidden
        ? Object.fromEntries(targets.map(([kind, name]) => [`${kind}_id`, name]))
        : undefined;
    const channels = value("/channels")
      .split(/[,\s]+/)
      .filter(Boolean);
    message.channels = channels.length ? channels : undefined;
    const typed = value("/data");
    let broken = "";
    try {
      message.data = typed ? JSON.parse(typed) : undefined;
    } catch (error) {
      broken = t("publish.no.json", { why: error.message });
    }
    const metadata = {
      ...message.metadata,
      priority: value("/metadata/priority") || undefined,
      ttl: number("/metadata/ttl"),
    };
    this.#terms.hidden = !this.ack.checked;
    const terms = {
      deadline: number("/metadata/ack/deadline"),
      deliveries: number("/metadata/ack/deliveries"),
      collapse: value("/metadata/ack/collapse") || undefined,
      receipt: this.receipt.checked || undefined,
    };
    metadata.ack = !this.ack.checked
      ? undefined
      : Object.values(terms).some((each) => each !== undefined)
        ? JSON.parse(JSON.stringify(terms))
        : true;
    message.metadata = Object.values(metadata).some((each) => each !== undefined)
      ? JSON.parse(JSON.stringify(metadata))
      : undefined;
    this.#message = JSON.parse(JSON.stringify(message));
    this.changed(this.#message);
    if (broken) this.#fields["/data"].complain(broken);
  }
}
