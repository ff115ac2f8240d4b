// Connections: who is connected, at any instance; how far behind; and their end.
import { ask, now, part } from "../api.js";
import { fill, h } from "../dom.js";
import { bytes, count, duration, t } from "../i18n.js";
import { badge, confirm, field, heading, nothing, options, refusal, status, table } from "../parts.js";
import { note, to } from "../router.js";
import { code, data } from "../text.js";

const KINDS = ["user", "service", "channel", "subject", "node"];
const PAGE = 50;

export default async function connections(root, { params, signal, onRecovery }) {
  const kind = field(
    t("connections.by"),
    h(
      "select",
      {},
      options(
        [["", t("connections.any")], ...KINDS.map((name) => [name, t(`connections.${name}`)])],
        KINDS.find((name) => params[name]) ?? "",
      ),
    ),
  );
  const value = field(
    t("connections.value"),
    h("input", { type: "search", value: params[kind.control.value] ?? "", autocomplete: "off", spellcheck: "false" }),
    { wide: true },
  );
  const totals = h("p", { class: "totals" });
  const done = status();
  const list = table(t("connections.title"), [
    {
      label: t("connections.subject"),
      cell: (c) => [
        c.subject === null ? h("span", { class: "quiet" }, t("connections.nobody")) : data(c.subject, 60),
        h("span", { class: "sub" }, code(c.id, 40)),
      ],
    },
    {
      label: t("connections.channels"),
      cell: (c) => [
        c.channels
          .slice(0, 3)
          .map((name) => h("a", { class: "chip", href: to("channels", { channel: name }) }, data(name, 40))),
        c.channels.length > 3 && h("span", { class: "sub" }, t("connections.more", { n: c.channels.length - 3 })),
      ],
    },
    {
      label: t("connections.state"),
      cell: (c) => [
        badge(c.state === "live" ? "good" : "warn", t(c.state === "live" ? "state.live" : "state.behind")),
        c.lag ? h("span", { class: "sub" }, t("connections.lag", { n: c.lag })) : null,
      ],
    },
    {
      label: t("connections.sent"),
      number: true,
      cell: (c) => [count(c.messages_sent), h("span", { class: "sub", translate: "no" }, bytes(c.bytes_sent))],
    },
    {
      label: t("connections.since"),
      number: true,
      cell: (c) => duration((now() - Date.parse(c.connected_at)) / 1000),
    },
    {
      label: t("connections.where"),
      cell: (c) => [
        code(c.remote ?? "–", 60),
        h("span", { class: "sub" }, code(c.node, 40), " · ", h("span", { translate: "no" }, c.transport)),
        c.user_agent && h("span", { class: "sub" }, data(c.user_agent, 40)),
      ],
    },
    {
      label: t("connections.act"),
      cell: (c) =>
        h(
          "button",
          { type: "button", class: "plain small", onclick: (event) => end(c, event.currentTarget) },
          t("connections.disconnect"),
          h("span", { class: "away" }, " ", code(c.subject ?? c.id, 60)),
        ),
    },
  ]);
  const body = h("div", { class: "card", "aria-live": "off" });
  const first = h(
    "button",
    { type: "button", class: "plain small", hidden: true, onclick: () => page(null) },
    t("page.first"),
  );
  const next = h(
    "button",
    { type: "button", class: "plain small", hidden: true, onclick: () => page(following) },
    t("page.next"),
  );
  let following = null;
  let at = null;
  let turn = 0;

  fill(
    root,
    heading("connections"),
    totals,
    h(
      "form",
      { class: "row tools", role: "search", onsubmit: search },
      kind.element,
      value.element,
      h("button", {}, t("search")),
    ),
    done.element,
    body,
    h("div", { class: "row end" }, first, next),
  );

  function wanted() {
    const name = kind.control.value;
    const text = value.control.value.trim();
    return name && text ? { [name]: text } : {};
  }

  function search(event) {
    event.preventDefault();
    note("connections", wanted());
    page(null);
  }

  async function page(after) {
    at = after;
    const mine = ++turn;
    let found;
    try {
      found = await ask("api/v1/connections", { query: { ...wanted(), limit: PAGE, next: after }, signal });
    } catch (problem) {
      if (!signal.aborted && mine === turn) fill(body, refusal(problem));
      return;
    }
    // What was asked for since then may have been answered before.
    if (mine !== turn) return;
    following = found.next;
    first.hidden = after === null;
    next.hidden = following === null;
    if (found.connections.length) {
      list.show(found.connections);
      fill(body, list.element);
    } else
      fill(
        body,
        nothing(
          t("connections.none"),
          t(Object.keys(wanted()).length ? "connections.none.such" : "connections.none.hint"),
        ),
      );
    done.say(t("connections.shown", { n: found.connections.length }));
    sum();
  }

  async function sum() {
    const told = await ask("api/v1/connections/stats", { signal, quiet: true }).catch(() => null);
    if (!told) return;
    const pairs = (each, say) =>
      Object.entries(each ?? {}).map(([name, n]) =>
        h("span", { class: "fact" }, h("strong", {}, count(n)), " ", say(name)),
      );
    fill(
      totals,
      h("span", { class: "fact" }, h("strong", {}, count(told.total)), " ", t("connections.total")),
      pairs(told.by_state, (name) => t(name === "live" ? "state.live" : "state.behind")),
      pairs(told.by_transport, (name) => h("span", { translate: "no" }, name)),
      h("span", { class: "fact" }, h("strong", {}, count(told.peak)), " ", t("connections.peak")),
    );
  }

  async function end(connection, button) {
    const answer = await confirm({
      title: t("disconnect.title"),
      text: [h("p", {}, data(connection.subject ?? connection.id)), h("p", {}, t("disconnect.text"))],
      actions: [
        { label: t("disconnect.back"), value: "true" },
        { label: t("disconnect.final"), value: "false", kind: "danger" },
      ],
    });
    if (!answer) return;
    button.disabled = true;
    try {
      await ask(`api/v1/connections/${part(connection.id)}`, {
        method: "DELETE",
        query: { reconnect: answer },
        signal,
      });
      done.say(t("disconnect.done"));
      button.closest("tr").classList.add("gone");
    } catch (problem) {
      if (signal.aborted) return;
      button.disabled = problem.status === 404;
      done.say(problem.status === 404 ? t("disconnect.gone") : data(problem.detail || t("away.hint"), 300));
    }
  }

  kind.control.addEventListener("change", () => value.control.focus());
  value.control.addEventListener("input", () => {
    // A name is one of something: of a user, until another is chosen.
    kind.control.value ||= KINDS[0];
  });
  onRecovery(() => page(at));
  await page(null);
}
