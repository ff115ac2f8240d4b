// Publish: a form and the message's JSON beside it, each made from the other; checked as the API does.
import { ask, BASE, shownToken } from "../api.js";
import { fill, h } from "../dom.js";
import { exact, Form } from "../form.js";
import { t } from "../i18n.js";
import { keep, kept } from "../memory.js";
import { choice, copyButton, facts, field, heading, refusal } from "../parts.js";
import { note, to } from "../router.js";
import { faultsOf } from "../schema.js";
import { code, data } from "../text.js";

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
  const fields = h("section", { class: "card stack", "aria-label": t("publish.form") }, form.element);
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
        fields,
        h("section", { class: "card stack", "aria-label": t("publish.json") }, text.element, others),
      ),
      h(
        "div",
        { class: "row acts" },
        button,
        copyButton(t("publish.curl"), () => curl(mode, text.control.value), ""),
        copyButton(t("copy.json"), () => text.control.value, ""),
      ),
    ),
    answer,
  );
  // What was being written stays through another language, another view, and a sign-in at the provider.
  const leave = () => keep("draft", text.control.value);
  signal.addEventListener("abort", leave);
  addEventListener("pagehide", leave, { signal });
  const draft = kept("draft");
  keep("draft", null);
  text.control.value = draft ?? pretty(mode === "broadcast" ? { ...EXAMPLE, channels: undefined } : EXAMPLE);
  typed();
  let kinds = null; // what can be pushed by
  onRecovery(() => (described && kinds) || begin());
  await begin();

  async function begin() {
    // Without the first the service alone checks; without the second nothing offers to push.
    [, kinds] = await Promise.all([
      description(signal).catch(() => {}),
      kinds ?? ask("api/v1/push", { signal }).catch(() => null),
    ]);
    if (signal.aborted) return;
    form.offerPush(Object.values(kinds ?? {}).some(Boolean));
    check();
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
    // Any change in the form would write them anew, as other numbers.
    fields.inert = !exact(text.control.value);
    message = read;
    form.show(message, mode);
    check();
  }

  function check() {
    text.complain(fields.inert ? t("publish.inexact.json") : "");
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
    // Not what stood there before it was broken.
    if (form.broken) return form.focusFirst();
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
