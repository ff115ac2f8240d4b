// One message: as a line of a list, and whole.
import { fill, h } from "./dom.js";
import { clock, count, moment, t } from "./i18n.js";
import { copyButton, facts, longText } from "./parts.js";
import { to } from "./router.js";
import { keep } from "./memory.js";
import { code, data, short } from "./text.js";

export const TYPES = ["info", "progress", "status", "success", "warning", "error", "custom"];

/** What a message says, on one line. */
export function gist({ type, data: told }) {
  const text = told?.text ?? told?.message;
  if (type === "progress" && typeof told?.progress === "number") {
    const stage = typeof told.stage === "string" ? ` · ${told.stage}` : "";
    return `${Math.floor(told.progress)} %${stage}${typeof text === "string" ? ` · ${short(text)}` : ""}`;
  }
  return short(typeof text === "string" ? text : (JSON.stringify(told) ?? ""), 160);
}

/** Fill a row's element; its parts are made once and used again. */
export function drawRow(element, entry) {
  let parts = element.parts;
  if (!parts) {
    const part = (name, tag = "bdi") => h(tag, { class: name, translate: "no" });
    parts = element.parts = {
      time: part("time", "span"),
      type: part("type", "span"),
      service: part("service"),
      gist: part("gist"),
    };
    element.append(...Object.values(parts));
  }
  const { message } = entry;
  entry.line ??= message.gap
    ? [clock(message.at), "gap", "", t(`gap.${message.gap.reason}`)]
    : [
        clock(message.timestamp),
        TYPES.includes(message.type) ? message.type : "custom",
        short(message.service, 64),
        gist(message),
      ];
  const [time, type, service, text] = entry.line;
  parts.time.textContent = time;
  parts.type.textContent = type;
  parts.type.className = `type ${type}`;
  parts.service.textContent = service;
  parts.gist.textContent = text;
}

/** A message, whole, in this element. */
export function showMessage(root, { message, text }) {
  if (message.gap) return fill(root, h("p", {}, t(`gap.${message.gap.reason}`)));
  const { metadata = {}, target, channels } = message;
  // What is short can be made beautiful; what is a megabyte long is shown as it came.
  const pretty = text.length < 200_000 ? JSON.stringify(message, null, 2) : text;
  const acked =
    metadata.ack &&
    h(
      "a",
      {
        class: "button plain small",
        href: to("delivery", { tab: "message", service: message.service, id: message.id }),
      },
      t("message.delivery"),
    );
  fill(
    root,
    h("h2", {}, t("message.title")),
    facts([
      [t("message.id"), code(message.id, 130)],
      [
        t("message.type"),
        h(
          "span",
          { class: `type ${TYPES.includes(message.type) ? message.type : "custom"}`, translate: "no" },
          data(message.type),
        ),
      ],
      [t("message.service"), data(message.service)],
      [t("message.source"), message.source && data(message.source)],
      [t("message.time"), moment(message.timestamp)],
      [
        t("message.target"),
        target &&
          Object.entries(target).map(([kind, value]) => h("span", { class: "chip" }, data(`${kind}: ${value}`, 100))),
      ],
      [
        t("message.channels"),
        channels?.length
          ? channels.map((name) => h("a", { class: "chip", href: to("channels", { channel: name }) }, data(name, 60)))
          : null,
      ],
      [t("message.priority"), metadata.priority && h("span", { translate: "no" }, data(metadata.priority))],
      [t("message.ttl"), metadata.ttl && `${count(metadata.ttl)} ${t("unit.s")}`],
      [t("message.retries"), metadata.retry_count ? count(metadata.retry_count) : null],
    ]),
    longText(pretty, t("message.json")),
    h(
      "div",
      { class: "row" },
      copyButton(t("copy.json"), () => pretty),
      text.length < 200_000 &&
        h(
          "a",
          { class: "button plain small", href: to("publish"), onclick: () => keep("draft", draftOf(message)) },
          t("message.again"),
        ),
      acked,
    ),
  );
}

/** A message as it could be published again: without what is its own. */
function draftOf(message) {
  const { id, timestamp, metadata, ...rest } = message;
  const { retry_count, ...asked } = metadata ?? {};
  return JSON.stringify({ ...rest, metadata: asked }, null, 2);
}
