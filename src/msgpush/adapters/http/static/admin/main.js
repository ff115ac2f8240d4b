// The frame around the views: who is signed in, where one is, language and looks.
import { onOutcome, Problem } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { choose, chosen, NAMES, t } from "./i18n.js";
import { refusal } from "./parts.js";
import { onPlace, place, to } from "./router.js";
import { current, findOut, signedIn, signOut } from "./session.js";
import { signInForm } from "./signin.js";
import { data } from "./text.js";
import { chosenScheme, chooseScheme, SCHEMES } from "./theme.js";
import { banner, onRecovery, recover, retell } from "./trouble.js";
import access from "./views/access.js";
import channels from "./views/channels.js";
import connections from "./views/connections.js";
import delivery from "./views/delivery.js";
import devices from "./views/devices.js";
import overview from "./views/overview.js";
import publish from "./views/publish.js";
import settings from "./views/settings.js";

const VIEWS = { overview, connections, channels, publish, delivery, devices, access, settings };

const main = h("main", { id: "main", tabindex: "-1" });
const nav = h("nav", { id: "nav" });
const bar = h("header", { class: "bar" });
const skip = h("a", { class: "skip", href: "#main", onclick: (event) => (event.preventDefault(), main.focus()) });
let shown = null; // what ends the view that is shown

function frame() {
  skip.textContent = t("skip");
  nav.setAttribute("aria-label", t("nav"));
  const links = Object.keys(VIEWS).map((name) =>
    h("li", {}, h("a", { href: to(name), "data-view": name }, icon(name), h("span", {}, t(`${name}.title`)))),
  );
  const { subject, mode } = current();
  fill(
    nav,
    h("ul", {}, links),
    h(
      "div",
      { class: "foot" },
      who(subject, mode),
      looks(),
      signedIn() && h("button", { type: "button", class: "plain", onclick: leave }, t("sign.out")),
    ),
  );
  const menu = h(
    "button",
    {
      type: "button",
      class: "plain menu",
      "aria-controls": "nav",
      "aria-expanded": "false",
      onclick: () => unfold(!document.body.classList.contains("unfolded")),
    },
    icon("menu"),
    h("span", { class: "away" }, t("menu")),
  );
  fill(bar, brand(), menu);
  document.body.classList.remove("outside");
}

const brand = () =>
  h(
    "a",
    { class: "brand", href: to("overview") },
    h("img", { src: "../static/icon.svg", alt: "", width: "28", height: "28" }),
    h("span", { translate: "no" }, "msgpush"),
  );

function who(subject, mode) {
  if (mode === "local" || mode === "open") return h("p", { class: "quiet who" }, t(`mode.${mode}`));
  return subject && h("p", { class: "quiet who" }, t("signed.in"), h("br"), data(subject, 60));
}

function looks() {
  const schemes = h(
    "select",
    { "aria-label": t("scheme"), onchange: (event) => chooseScheme(event.target.value) },
    SCHEMES.map((name) => h("option", { value: name, selected: name === chosenScheme() }, t(`scheme.${name}`))),
  );
  const languages = h(
    "select",
    { "aria-label": t("language"), onchange: (event) => speak(event.target.value) },
    Object.entries(NAMES).map(([name, label]) =>
      h("option", { value: name, selected: name === chosen(), lang: name, translate: "no" }, label),
    ),
  );
  return h("div", { class: "looks" }, schemes, languages);
}

function speak(language) {
  choose(language);
  retell();
  if (document.body.classList.contains("outside")) return outside();
  frame();
  unfold(false);
  view(false);
  nav.querySelectorAll("select")[1].focus();
}

function unfold(open) {
  document.body.classList.toggle("unfolded", open);
  bar.querySelector(".menu")?.setAttribute("aria-expanded", String(open));
}

/** Show the view that the address names. */
function view(moved = true) {
  if (document.body.classList.contains("outside")) return;
  const { name, params } = place();
  before = { name: Object.hasOwn(VIEWS, name) ? name : "overview", params };
  end();
  unfold(false);
  mark();
  document.title = `${t(`${before.name}.title`)} · msgpush`;
  const off = new AbortController();
  const room = h("div", { class: `view ${before.name}` });
  shown = off;
  fill(main, room);
  // Each view asks for itself; this is for what none of them has thought of.
  const found = VIEWS[before.name];
  Promise.resolve(found(room, { params, signal: off.signal, onRecovery: (act) => onRecovery(act, off.signal) })).catch(
    (error) => {
      if (off.signal.aborted) return;
      if (!(error instanceof Problem)) console.error(error);
      fill(room, refusal(error instanceof Problem ? error : new Problem(400, String(error))));
    },
  );
  if (!moved) return;
  scrollTo(0, 0);
  (main.querySelector("h1") ?? main).focus({ preventScroll: true });
}
let before = { name: "overview", params: {} };

/** Mark the view that is shown among the links. */
function mark() {
  for (const link of nav.querySelectorAll("a[data-view]")) {
    if (link.dataset.view === before.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function end() {
  shown?.abort();
  shown = null;
}

/** The page of one who isn't signed in. */
function outside() {
  end();
  document.body.classList.add("outside");
  unfold(false);
  fill(nav);
  fill(bar, brand(), looks());
  document.title = `${t("sign.title")} · msgpush`;
  skip.textContent = t("skip");
  fill(main, signInForm({ oidc: current().oidc, done: inside }));
  main.querySelector("input")?.focus();
}

function inside() {
  frame();
  view();
}

async function leave() {
  // First: what is shown would ask to sign in again as soon as it hears that the session has ended.
  end();
  document.body.classList.add("outside");
  await signOut();
  outside();
}

let asking = false;
/** The session has ended: sign in again, above what is there, so that nothing of it is lost. */
async function again() {
  if (asking || document.body.classList.contains("outside")) return;
  asking = true;
  await findOut().catch(() => {});
  const dialog = h("dialog", { class: "ask", "aria-labelledby": "again", closedby: "none" });
  const form = signInForm({
    oidc: current().oidc,
    expired: true,
    done() {
      asking = false;
      dialog.close();
      dialog.remove();
      frame();
      mark();
      recover();
    },
  });
  form.querySelector("h1").id = "again";
  dialog.append(form);
  // It can't be left: there is nothing to go back to.
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  // Some browsers close it all the same, when Escape is pressed twice.
  dialog.addEventListener("close", () => asking && dialog.showModal());
  document.body.append(dialog);
  dialog.showModal();
}

onOutcome((problem) => {
  if (problem?.status === 401) again();
});
onPlace(() => view());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.classList.contains("unfolded")) {
    unfold(false);
    bar.querySelector(".menu").focus();
  }
});

async function start() {
  document.body.replaceChildren(skip, bar, nav, h("div", { class: "content" }, banner, main));
  try {
    await findOut(false);
  } catch (problem) {
    if (problem.status === 401) return outside();
    if (problem.status !== 403) {
      fill(main, refusal(problem));
      const off = new AbortController();
      onRecovery(() => {
        off.abort();
        start();
      }, off.signal);
      return;
    }
  }
  inside();
}

document.body.classList.add("outside");
start();
