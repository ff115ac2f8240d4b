// The fields of a message, for who would rather not write JSON.
import { h, newId } from "./dom.js";
import { t } from "./i18n.js";
import { TYPES } from "./message.js";
import { field, options } from "./parts.js";

const PRIORITIES = ["low", "normal", "high", "urgent"];
const WHENS = ["offline", "unacknowledged", "always"];
const PUSHED = ["when", "title", "body", "url"];

/** What an object says; undefined, if that is nothing. */
const told = (object) =>
  Object.values(object).some((each) => each !== undefined) ? JSON.parse(JSON.stringify(object)) : undefined;

/** Whether a JSON text has only numbers that this browser keeps: of whole ones it knows about 16 digits. */
export function exact(text) {
  const numbers = text.replace(/"(?:\\.|[^"\\])*"/g, "").match(/-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g) ?? [];
  return numbers.every((number) => /[.eE]/.test(number) || Number.isSafeInteger(Number(number)));
}

/** The fields of a message. `changed` is called with the whole message whenever one is edited. */
export class Form {
  #why = ""; // the data that stands in its field can't be the message's
  #message = {};
  #mode = "send";
  #fields = {};
  #targets = h("div", { class: "stack" });
  #terms;
  #pushes = false; // whether this service can push
  #pushed;
  #notice;
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
    const when = select([["", t("publish.default")], ...raw(WHENS)], "");
    for (const option of [type, priority, when].flatMap((each) => [...each.options]))
      if (option.value) option.translate = false;
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
    this.push = h("input", { type: "checkbox", onchange: () => this.#read() });
    this.#notice = h(
      "div",
      { class: "stack terms", hidden: true },
      h(
        "div",
        { class: "pair" },
        make("/metadata/push/title", "publish.push.title", input(), { hint: t("publish.push.title.hint") }),
        make("/metadata/push/when", "publish.push.when", when, { key: "when" }),
      ),
      make("/metadata/push/body", "publish.push.body", input()),
      make("/metadata/push/url", "publish.push.url", input(), { hint: t("publish.push.url.hint") }),
    );
    this.#pushed = h(
      "div",
      { class: "stack", hidden: true },
      h("label", { class: "check" }, this.push, t("publish.push")),
      (this.#fields["/metadata/push"] = this.#orphan(this.push)).element,
      this.#notice,
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
        make("/timestamp", "message.time", input({ placeholder: "2026-01-31T12:00:00Z", translate: "no" })),
      ),
    );
    this.element = [
      top,
      this.#where,
      channels,
      body,
      meta,
      h("label", { class: "check" }, this.ack, t("publish.ack")),
      (this.#fields["/metadata/ack"] = this.#orphan(this.ack)).element,
      this.#terms,
      this.#pushed,
      more,
    ];
  }

  /** Offer to push a message, or don't: where nothing can be pushed, the service refuses it. */
  offerPush(pushes) {
    this.#pushes = pushes;
    this.#pushed.hidden = !pushes || this.#mode === "broadcast";
  }

  /** Put a message into the fields, but for the one that is being edited. */
  show(message, mode) {
    this.#message = message;
    this.#mode = mode;
    this.offerPush(this.#pushes);
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
    this.#why = "";
    put("/data", message.data === undefined ? "" : JSON.stringify(message.data, null, 2));
    put("/metadata/priority", metadata?.priority);
    put("/metadata/ttl", metadata?.ttl);
    const ack = metadata?.ack;
    this.ack.checked = Boolean(ack);
    this.#terms.hidden = !ack;
    for (const name of ["deadline", "deliveries", "collapse"]) put(`/metadata/ack/${name}`, ack?.[name]);
    this.receipt.checked = Boolean(ack?.receipt);
    const push = metadata?.push;
    this.push.checked = Boolean(push);
    this.#notice.hidden = !push;
    for (const name of PUSHED) put(`/metadata/push/${name}`, push?.[name]);
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
      // Its parent: a line about what is wrong isn't seen itself, before there is something.
      if (!place || !place.element.parentElement?.checkVisibility?.()) rest.push({ pointer, detail });
      else
        texts.set(place, [
          ...(texts.get(place) ?? []),
          at === pointer ? detail : `${pointer.slice(at.length)}: ${detail}`,
        ]);
    }
    if (this.broken) texts.set(this.#fields["/data"], [this.#why]);
    for (const each of this.#all()) each.complain((texts.get(each) ?? []).join(" "));
    return rest;
  }

  /** Whether the data isn't what stands in its field, since that can't be read. */
  get broken() {
    return this.#why !== "";
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

  /** A place for what is wrong where no field of its own is: with a box, or of a group. */
  #orphan(control) {
    const line = h("p", { class: "wrong", id: newId("wrong"), hidden: true });
    control?.setAttribute("aria-describedby", line.id);
    return {
      element: line,
      control: control ?? line,
      complain(text) {
        line.textContent = text;
        line.hidden = !text;
        if (text) control?.setAttribute("aria-invalid", "true");
        else control?.removeAttribute("aria-invalid");
      },
    };
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
    this.#why = "";
    try {
      message.data = typed ? JSON.parse(typed) : undefined;
      if (!exact(typed)) this.#why = t("publish.inexact");
    } catch (error) {
      this.#why = t("publish.no.json", { why: error.message });
    }
    const metadata = {
      ...message.metadata,
      priority: value("/metadata/priority") || undefined,
      ttl: number("/metadata/ttl"),
    };
    this.#terms.hidden = !this.ack.checked;
    const terms = {
      ...this.#message.metadata?.ack,
      deadline: number("/metadata/ack/deadline"),
      deliveries: number("/metadata/ack/deliveries"),
      collapse: value("/metadata/ack/collapse") || undefined,
      receipt: this.receipt.checked || undefined,
    };
    metadata.ack = this.ack.checked ? (told(terms) ?? true) : undefined;
    this.#notice.hidden = !this.push.checked;
    // Where it isn't offered, it stays as it was.
    if (!this.#pushed.hidden) {
      const notice = { ...this.#message.metadata?.push };
      for (const name of PUSHED) notice[name] = value(`/metadata/push/${name}`) || undefined;
      metadata.push = this.push.checked ? (told(notice) ?? true) : undefined;
    }
    message.metadata = told(metadata);
    this.#message = JSON.parse(JSON.stringify(message));
    this.changed(this.#message);
  }
}
