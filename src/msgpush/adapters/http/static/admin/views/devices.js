// Devices: how this service can push, and where a user is reached whose pages are closed.
import { ask, part } from "../api.js";
import { fill, h } from "../dom.js";
import { moment, t } from "../i18n.js";
import { badge, confirm, copyButton, field, heading, nothing, refusal, status, table } from "../parts.js";
import { note } from "../router.js";
import { code, data } from "../text.js";

const NAMES = { webpush: "Web Push", fcm: "FCM", apns: "APNs" };
const TEST_TTL = 300; // seconds: a test that comes later says nothing

export default async function devices(root, { params, signal, onRecovery }) {
  const asked = field(
    t("pending.user"),
    h("input", {
      type: "search",
      value: params.user ?? "",
      required: true,
      autocomplete: "off",
      spellcheck: "false",
    }),
    { wide: true },
  );
  const kinds = h("div", { class: "kinds" });
  const said = status();
  const body = h("div", { class: "card" }, nothing(t("devices.ask"), t("devices.ask.hint"), "devices"));
  const list = table(t("devices.title"), [
    {
      label: t("devices.device"),
      cell: (d) => [
        d.label === null ? h("span", { class: "quiet" }, t("devices.unnamed")) : data(d.label, 64),
        h("span", { class: "sub" }, code(d.device, 40)),
      ],
    },
    {
      label: t("devices.kind"),
      cell: (d) => [name(d.kind), isOn(d.kind) === false && [" ", badge("warn", t("push.off"))]],
    },
    { label: t("devices.since"), cell: (d) => moment(d.created_at) },
    { label: t("connections.act"), cell: (d) => remove("device", d.device, d.label ?? d.device) },
  ]);
  let on = null; // what this service can push by; null: not known
  let user = ""; // whose devices are shown
  let turn = 0;
  const isOn = (kind) => on && Boolean(on[kind]);

  fill(
    root,
    heading("devices"),
    kinds,
    h("form", { class: "row tools", role: "search", onsubmit: search }, asked.element, h("button", {}, t("search"))),
    said.element,
    body,
  );

  function search(event) {
    event.preventDefault();
    note("devices", { user: asked.control.value.trim() });
    show();
  }

  /** What is on; where nothing is, what would change that. */
  async function look() {
    try {
      on = await ask("api/v1/push", { signal });
    } catch (problem) {
      if (!signal.aborted) fill(kinds, refusal(problem));
      return;
    }
    if (!Object.keys(NAMES).some(isOn)) return fill(kinds, nothing(t("push.none"), t("push.none.hint"), "settings"));
    fill(
      kinds,
      h(
        "ul",
        { class: "totals", "aria-label": t("push.kinds") },
        Object.keys(NAMES).map((kind) =>
          h("li", {}, name(kind), " ", badge(isOn(kind) ? "good" : "quiet", t(isOn(kind) ? "push.on" : "push.off"))),
        ),
        on.webpush && h("li", {}, copyButton(t("push.key"), () => on.webpush.public_key)),
      ),
    );
  }

  /** The devices of whom is asked for; `words` say what has just been done. */
  async function show(words) {
    const wanted = asked.control.value.trim();
    if (!wanted) return;
    const mine = ++turn;
    let found;
    try {
      found = (await ask(`api/v1/users/${part(wanted)}/devices`, { signal })).devices;
    } catch (problem) {
      if (signal.aborted || mine !== turn) return;
      said.say(words);
      fill(body, refusal(problem));
      return;
    }
    // What was asked for since then may have been answered before.
    if (mine !== turn) return;
    user = wanted;
    said.say(words ?? t("devices.shown", { n: found.length }));
    if (!found.length) return fill(body, nothing(t("devices.none"), t("devices.none.hint")));
    list.show(found);
    // A test would reach none of a kind that is off.
    const reached = found.filter((d) => isOn(d.kind) !== false).length;
    const test = reached ? sendTest(reached) : null;
    fill(
      body,
      h(
        "div",
        { class: "head" },
        h("h2", { tabindex: "-1" }, data(user)),
        h("div", { class: "row" }, test, remove("devices", null, user)),
      ),
      test && h("p", { class: "hint" }, t("devices.test.hint")),
      list.element,
    );
  }

  /** A button that deletes one device, or where `id` is null all of them, once that was confirmed. */
  function remove(key, id, whose) {
    const button = h(
      "button",
      { type: "button", class: "plain small" },
      t(`${key}.delete.do`),
      h("span", { class: "away" }, " ", data(whose, 60)),
    );
    button.addEventListener("click", async () => {
      const of = user;
      const answer = await confirm({
        title: t(`${key}.delete.title`),
        text: [h("p", {}, data(whose)), h("p", {}, t(`${key}.delete.text`))],
        actions: [{ label: t(`${key}.delete.do`), value: "yes", kind: "danger" }],
      });
      if (!answer) return;
      const path = `api/v1/users/${part(of)}/devices`;
      await act(button, async () => {
        await ask(id === null ? path : `${path}/${part(id)}`, { method: "DELETE", signal });
        if (of === user) await show(t(`${key}.delete.done`));
        // The button that had the focus is gone.
        if (document.activeElement === document.body) (body.querySelector("h2") ?? asked.control).focus();
      });
    });
    return button;
  }

  /** A button that publishes a message as any publisher does, and has it pushed at once. */
  function sendTest(n) {
    const button = h("button", { type: "button", class: "small" }, t("devices.test"));
    button.addEventListener("click", () => {
      const text = t("devices.test.body");
      const message = {
        type: "info",
        service: "operator",
        target: { user_id: user },
        data: { message: text },
        // FCM and APNs are told no more than what stands here.
        metadata: { ttl: TEST_TTL, push: { when: "always", title: t("devices.test.title"), body: text } },
      };
      return act(button, async () => {
        await ask("api/v1/messages/send", { method: "POST", body: message, signal });
        said.say(t("devices.test.done", { n }), " ", t("devices.test.more"));
        button.disabled = false;
      });
    });
    return button;
  }

  /** Do what a button is for, and say why it can't be done. */
  async function act(button, does) {
    button.disabled = true;
    try {
      await does();
    } catch (problem) {
      if (signal.aborted) return;
      button.disabled = false;
      const why = problem.errors?.map((each) => each.detail).join("; ") || problem.detail;
      said.say(h("span", { class: "wrong" }, why ? data(why, 300) : t("away.hint")));
    }
  }

  onRecovery(() => look().then(() => show()));
  await look();
  await show();
}

const name = (kind) => h("span", { translate: "no" }, NAMES[kind] ?? kind);
