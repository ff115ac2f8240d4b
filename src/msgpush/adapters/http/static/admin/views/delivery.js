// Delivery: what waits for a user, what became of one message, and what was given up.
import { ask, part } from "../api.js";
import { fill, h } from "../dom.js";
import { count, moment, t } from "../i18n.js";
import { gist } from "../message.js";
import { badge, choice, confirm, facts, field, heading, longText, nothing, refusal, status, table } from "../parts.js";
import { go, note, to } from "../router.js";
import { code, data } from "../text.js";

const TABS = { pending, message, dead };
const KINDS = { accepted: "info", written: "info", acknowledged: "good", withdrawn: "quiet", dead: "bad" };
const PAGE = 50;

export default function delivery(root, { params, signal, onRecovery }) {
  const tab = Object.hasOwn(TABS, params.tab) ? params.tab : "pending";
  const room = h("div", {});
  const tabs = choice(
    t("delivery.what"),
    Object.keys(TABS).map((name) => [name, t(`delivery.${name}`)]),
    tab,
    (chosen) => go("delivery", { tab: chosen }),
  );
  fill(root, heading("delivery"), h("div", { class: "row tools" }, tabs), room);
  return TABS[tab](room, { params, signal, onRecovery });
}

const text = (label, value) =>
  field(
    label,
    h("input", { type: "search", value: value ?? "", required: true, autocomplete: "off", spellcheck: "false" }),
    { wide: true },
  );
const messageLink = (service, id) => h("a", { href: to("delivery", { tab: "message", service, id }) }, code(id, 60));
const open = (message) =>
  h(
    "details",
    {},
    h("summary", {}, data(gist(message), 100)),
    longText(JSON.stringify(message, null, 2), t("message.json")),
  );

/** A list of what is asked for by one name, page by page. */
function lookup(room, { label, value, name, tab, columns, caption, hint, load, signal, onRecovery }) {
  const asked = text(label, value);
  const said = status();
  const list = table(caption, columns(said));
  const body = h("div", { class: "card" });
  let after = null;
  let following = null;
  let turn = 0;
  const first = h(
    "button",
    { type: "button", class: "plain small", hidden: true, onclick: () => show(null) },
    t("page.first"),
  );
  const next = h(
    "button",
    { type: "button", class: "plain small", hidden: true, onclick: () => show(following) },
    t("page.next"),
  );
  const search = (event) => {
    event.preventDefault();
    note("delivery", { tab, [name]: asked.control.value.trim() });
    show(null);
  };
  fill(
    room,
    h("form", { class: "row tools", role: "search", onsubmit: search }, asked.element, h("button", {}, t("search"))),
    said.element,
    body,
    h("div", { class: "row end" }, first, next),
  );
  fill(body, nothing(hint[0], hint[1], "delivery"));

  async function show(from) {
    after = from;
    const wanted = asked.control.value.trim();
    if (!wanted) return;
    const mine = ++turn;
    let page;
    try {
      page = await load(wanted, from);
    } catch (problem) {
      if (!signal.aborted && mine === turn) fill(body, refusal(problem));
      return;
    }
    // What was asked for since then may have been answered before.
    if (mine !== turn) return;
    following = page.next;
    first.hidden = from === null;
    next.hidden = following === null;
    said.say(page.said);
    list.show(page.rows);
    fill(body, page.rows.length ? list.element : nothing(...page.none));
  }

  onRecovery(() => show(after));
  return show(null);
}

function pending(room, { params, signal, onRecovery }) {
  return lookup(room, {
    label: t("pending.user"),
    value: params.user,
    name: "user",
    tab: "pending",
    caption: t("delivery.pending"),
    hint: [t("pending.ask"), t("pending.ask.hint")],
    signal,
    onRecovery,
    columns: (said) => [
      { label: t("message.id"), cell: (m) => messageLink(m.service, m.id) },
      { label: t("message.service"), cell: (m) => data(m.service) },
      { label: t("message.priority"), cell: (m) => h("span", { translate: "no" }, data(m.metadata.priority)) },
      { label: t("pending.tried"), number: true, cell: (m) => count(m.metadata.retry_count) },
      { label: t("message.time"), cell: (m) => moment(m.timestamp) },
      { label: t("message.title"), cell: open },
      { label: t("connections.act"), cell: (m) => action("withdraw", m.service, m.id, said, signal) },
    ],
    async load(user, next) {
      const page = await ask(`api/v1/users/${part(user)}/pending`, { query: { limit: PAGE, next }, signal });
      return {
        rows: page.messages,
        next: page.next,
        said: t("pending.total", { n: page.total }),
        none: [t("pending.none"), t("pending.none.hint")],
      };
    },
  });
}

function dead(room, { params, signal, onRecovery }) {
  return lookup(room, {
    label: t("message.service"),
    value: params.service,
    name: "service",
    tab: "dead",
    caption: t("delivery.dead"),
    hint: [t("dead.ask"), t("dead.ask.hint")],
    signal,
    onRecovery,
    columns: (said) => [
      { label: t("message.id"), cell: ({ message: m }) => messageLink(m.service, m.id) },
      { label: t("dead.user"), cell: ({ message: m }) => data(m.target?.user_id ?? "") },
      {
        label: t("dead.reason"),
        cell: (each) => badge("bad", t(each.reason === "expired" ? "reason.expired" : "reason.deliveries")),
      },
      { label: t("dead.deliveries"), number: true, cell: (each) => count(each.deliveries) },
      { label: t("dead.at"), cell: (each) => moment(each.died_at) },
      { label: t("message.title"), cell: (each) => open(each.message) },
      {
        label: t("connections.act"),
        cell: ({ message: m }) =>
          h(
            "div",
            { class: "row" },
            action("redeliver", m.service, m.id, said, signal),
            action("forget", m.service, m.id, said, signal),
          ),
      },
    ],
    async load(service, next) {
      const page = await ask("api/v1/dead-letters", { query: { service, limit: PAGE, next }, signal });
      return {
        rows: page.dead_letters,
        next: page.next,
        said: t("dead.shown", { n: page.dead_letters.length }),
        none: [t("dead.none"), t("dead.none.hint")],
      };
    },
  });
}

const ACTIONS = {
  withdraw: { method: "DELETE", path: (service, id) => `api/v1/messages/${service}/${id}/delivery`, kind: "danger" },
  redeliver: { method: "POST", path: (service, id) => `api/v1/dead-letters/${service}/${id}/redeliver` },
  forget: { method: "DELETE", path: (service, id) => `api/v1/dead-letters/${service}/${id}`, kind: "danger" },
};

/** A button that does something to a message, once that was confirmed. */
function action(name, service, id, said, signal, done) {
  const { method, path, kind } = ACTIONS[name];
  const button = h(
    "button",
    { type: "button", class: "plain small" },
    t(`${name}.do`),
    h("span", { class: "away" }, " ", code(id, 60)),
  );
  button.addEventListener("click", async () => {
    const answer = await confirm({
      title: t(`${name}.title`),
      text: [h("p", {}, code(`${service}/${id}`)), h("p", {}, t(`${name}.text`))],
      actions: [{ label: t(`${name}.do`), value: "yes", kind }],
    });
    if (!answer) return;
    button.disabled = true;
    try {
      await ask(path(part(service), part(id)), { method, signal });
      said.say(t(`${name}.done`));
      button.closest("tr")?.classList.add("gone");
      done?.();
    } catch (problem) {
      if (signal.aborted) return;
      button.disabled = false;
      said.say(h("span", { class: "wrong" }, problem.detail ? data(problem.detail, 300) : t("away.hint")));
    }
  });
  return button;
}

async function message(room, { params, signal, onRecovery }) {
  const service = text(t("message.service"), params.service);
  const id = text(t("message.id"), params.id);
  const said = status();
  const body = h("div", { class: "card" }, nothing(t("one.ask"), t("one.ask.hint"), "delivery"));
  const search = (event) => {
    event.preventDefault();
    note("delivery", { tab: "message", service: service.control.value.trim(), id: id.control.value.trim() });
    show();
  };
  fill(
    room,
    h(
      "form",
      { class: "row tools", role: "search", onsubmit: search },
      service.element,
      id.element,
      h("button", {}, t("search")),
    ),
    said.element,
    body,
  );

  let turn = 0;
  async function show() {
    const [s, i] = [service.control.value.trim(), id.control.value.trim()];
    if (!s || !i) return;
    const mine = ++turn;
    let told;
    try {
      told = await ask(`api/v1/messages/${part(s)}/${part(i)}/delivery`, { signal });
    } catch (problem) {
      if (!signal.aborted && mine === turn) fill(body, refusal(problem));
      return;
    }
    if (mine !== turn) return;
    const reason = told.reason && t(told.reason === "expired" ? "reason.expired" : "reason.deliveries");
    const acts =
      told.state === "dead"
        ? ["redeliver", "forget"]
        : ["accepted", "written"].includes(told.state)
          ? ["withdraw"]
          : [];
    fill(
      body,
      h(
        "div",
        { class: "stack" },
        h(
          "div",
          { class: "head" },
          h("h2", {}, code(told.key)),
          badge(KINDS[told.state] ?? "quiet", t(`outcome.${told.state}`)),
        ),
        h("p", { class: "quiet" }, t(`outcome.${told.state}.means`)),
        facts([
          [
            t("dead.user"),
            h("a", { href: to("delivery", { tab: "pending", user: told.user_id }) }, data(told.user_id)),
          ],
          [t("dead.reason"), reason],
          [t("dead.deliveries"), count(told.deliveries)],
          [t("one.accepted"), moment(told.accepted_at)],
          [t("one.written"), told.written_at && moment(told.written_at)],
          [t("one.acknowledged"), told.acknowledged_at && moment(told.acknowledged_at)],
          [t("one.next"), told.next_at && moment(told.next_at)],
        ]),
        h(
          "div",
          { class: "row" },
          acts.map((name) => action(name, s, i, said, signal, show)),
        ),
      ),
    );
  }

  onRecovery(show);
  await show();
}
