// Overview: what happens now, what has happened, and how the instances are.
import { ask, now } from "../api.js";
import { Chart } from "../charts.js";
import { fill, h } from "../dom.js";
import { count, duration, figure, t } from "../i18n.js";
import { Live } from "../live.js";
import { badge, choice, heading, nothing, refusal, table } from "../parts.js";
import { note } from "../router.js";
import { code, data } from "../text.js";

const RANGES = { hour: 3600, quarter: 6 * 3600, day: 86400, week: 7 * 86400, month: 30 * 86400 };
const COUNTS = ["published", "delivered", "failed", "acknowledged", "dead"];
const GROUPS = ["", "service", "type"];
const MOST_LINES = 6;
const HISTORY_EVERY = 60_000;

export default function overview(root, { params, signal, onRecovery }) {
  const present = h("div", {});
  const past = h("div", {});
  fill(root, heading("overview"), present, past);
  live(present, { signal, onRecovery });
  history(past, { params, signal, onRecovery });
}

function live(root, { signal, onRecovery }) {
  const per = t("unit.per.s");
  const lines = (...names) => names.map(([key, colour]) => ({ label: t(key), colour }));
  const charts = {
    messages: new Chart({
      title: t("overview.messages"),
      unit: per,
      series: lines(["count.published", "c1"], ["count.failed", "c4"]),
    }),
    deliveries: new Chart({
      title: t("overview.deliveries"),
      unit: per,
      series: lines(["count.delivered", "c1"], ["count.acknowledged", "c2"]),
    }),
    latency: new Chart({
      title: t("overview.latency"),
      unit: t("unit.ms"),
      series: lines(["overview.p50", "c1"], ["overview.p99", "c3"]),
    }),
    streams: new Chart({
      title: t("overview.streams"),
      unit: t("unit.streams"),
      series: lines(["state.live", "c1"], ["state.behind", "c3"]),
    }),
  };
  const instances = instanceTable();
  const list = h(
    "section",
    { class: "card", "aria-labelledby": "instances" },
    h("div", { class: "head" }, h("h2", { id: "instances" }, t("overview.instances"))),
    instances.element,
  );
  const all = [
    h(
      "div",
      { class: "grid" },
      Object.values(charts).map((chart) => chart.element),
    ),
    list,
  ];
  signal.addEventListener("abort", () => Object.values(charts).forEach((chart) => chart.close()));
  const big = (value, unit) => [h("span", { class: "big" }, value), " ", h("span", { class: "unit" }, unit)];

  const feed = new Live(
    ({ instances: found, rates, latency, streams }) => {
      if (!root.contains(list)) fill(root, all);
      charts.messages.show(feed.messages.columns(), ...big(figure(rates?.published), per));
      charts.deliveries.show(feed.deliveries.columns(), ...big(figure(rates?.delivered), per));
      charts.latency.show(feed.latency.columns(), ...big(figure(latency[1]), t("unit.ms.p99")));
      const n = streams[0] + streams[1];
      charts.streams.show(feed.streams.columns(), ...big(count(n), t("unit.streams", { n })));
      instances.show(found);
    },
    (problem) => {
      // What was shown stays while the service is away: the banner says that it is old.
      if (!(problem.passes && root.contains(list))) fill(root, refusal(problem));
    },
    signal,
  );
  onRecovery(() => feed.again());
}

function instanceTable() {
  const columns = [
    {
      label: t("instance.node"),
      cell: (each) => [
        code(each.node, 60),
        h("span", { class: "sub" }, h("span", { translate: "no" }, `${each.version} · ${each.bus}`)),
      ],
    },
    { label: t("instance.state"), cell: state },
    {
      label: t("instance.streams"),
      number: true,
      cell: ({ streams, limit }) => [
        count(streams.live + streams.behind),
        streams.behind
          ? h("span", { class: "sub" }, t("instance.behind", { n: streams.behind }))
          : h("span", { class: "sub" }, t("instance.limit", { n: limit })),
      ],
    },
    { label: t("instance.published"), number: true, cell: (each) => figure(each.rates?.published) },
    { label: t("instance.delivered"), number: true, cell: (each) => figure(each.rates?.delivered) },
    { label: t("instance.latency"), number: true, cell: ({ latency_ms: l }) => `${figure(l.p50)} / ${figure(l.p99)}` },
    { label: t("instance.lag"), number: true, cell: (each) => figure(each.loop_lag_ms) },
    { label: t("instance.registry"), cell: registry },
    {
      label: t("instance.up"),
      number: true,
      cell: (each) => duration((now() - Date.parse(each.started_at)) / 1000),
    },
  ];
  const made = table(t("overview.instances"), columns);
  let before = "";
  return {
    element: made.element,
    show(found) {
      // Rows are made anew only where they say something else.
      const said =
        JSON.stringify(found, (key, value) => (["at", "heard"].includes(key) ? undefined : value)) + Math.floor(now() / 60_000);
      if (said === before) return;
      before = said;
      made.show(found);
    },
  };
}

function state({ ready, draining, reason, silent }) {
  if (silent) return [badge("warn", t("instance.silent")), h("span", { class: "sub" }, t("instance.silent.means"))];
  if (draining) return badge("warn", t("instance.draining"));
  return [
    badge(ready ? "good" : "bad", t(ready ? "instance.ready" : "instance.not.ready")),
    reason && h("span", { class: "sub" }, data(reason, 120)),
  ];
}

function registry({ registry: told }) {
  if (!told) return h("span", { class: "quiet" }, t("registry.none"));
  const kinds = { registered: "good", trying: "warn", withdrawn: "quiet" };
  const error = told.error && h("span", { class: "sub" }, data(told.error, 120));
  return [
    badge(kinds[told.state] ?? "quiet", t(`registry.${told.state in kinds ? told.state : "trying"}`)),
    h("span", { class: "sub" }, data(told.kind)),
    error,
  ];
}

function history(root, { params, signal, onRecovery }) {
  const asked = {
    range: Object.hasOwn(RANGES, params.range) ? params.range : "hour",
    by: GROUPS.includes(params.by) ? params.by : "",
    count: COUNTS.includes(params.count) ? params.count : "published",
  };
  const body = h("div", { class: "grid" });
  let charts = [];
  let timer;
  const set = (name) => (value) => {
    asked[name] = value;
    note("overview", asked);
    load();
  };
  const counts = h(
    "select",
    { "aria-label": t("history.what"), onchange: (event) => set("count")(event.target.value) },
    COUNTS.map((name) => h("option", { value: name, selected: name === asked.count }, t(`count.${name}`))),
  );
  fill(
    root,
    h("div", { class: "heading sub" }, h("h2", { class: "section" }, t("history.title"))),
    h(
      "div",
      { class: "row tools" },
      choice(
        t("history.range"),
        Object.keys(RANGES).map((name) => [name, t(`range.${name}`)]),
        asked.range,
        set("range"),
      ),
      choice(
        t("history.by"),
        GROUPS.map((name) => [name, t(`by.${name || "all"}`)]),
        asked.by,
        set("by"),
      ),
      counts,
    ),
    body,
  );

  let drawn = "";
  function close() {
    for (const chart of charts) chart.close();
    charts = [];
    drawn = "";
  }

  let turn = 0;
  let old = false;
  async function load() {
    clearTimeout(timer);
    old = false;
    timer = setTimeout(() => ((old = true), renew()), HISTORY_EVERY);
    const mine = ++turn;
    const to = Math.floor(now() / 1000);
    let told;
    try {
      told = await ask("api/v1/stats/messages", {
        query: { from: to - RANGES[asked.range], to, by: asked.by },
        signal,
      });
    } catch (problem) {
      if (signal.aborted || mine !== turn) return;
      if (problem.passes && charts.length) return;
      close();
      fill(body, refusal(problem));
      return;
    }
    if (signal.aborted || mine !== turn) return;
    draw(told);
  }

  /** Load it anew when it is old, and somebody looks. */
  function renew() {
    if (old && document.visibilityState === "visible") load();
  }

  function draw(told) {
    const lines = largest(told.series, asked.count);
    const times = steps(told);
    // The step that has just begun: as long as nothing is recorded of it, it isn't known to be nothing.
    const begun = times.at(-1) + told.step > now() / 1000 && lines.every(({ values }) => !values.at(-1));
    if (begun && times.length > 1) for (const each of [times, ...lines.map(({ values }) => values)]) each.pop();
    const counted = lines.some(({ values }) => values.some(Boolean));
    if (!counted) {
      close();
      return fill(body, nothing(t("history.none"), t("history.none.hint")));
    }
    const dates = RANGES[asked.range] > 86400 ? "days" : "hours";
    const label = (key) => (asked.by ? (key === "other" ? t("by.other") : key) : t(`count.${asked.count}`));
    const series = lines.map((line, i) => ({
      label: label(line.key),
      colour: `c${i + 1}`,
      data: asked.by && line.key !== "other" ? data(line.key) : undefined,
    }));
    const { p50, p99 } = told.latency_ms ?? {};
    const timed = p50?.some((value) => value !== null);
    const shape = JSON.stringify([asked, told.step, lines.map(({ key }) => key), timed]);
    // Charts of the same lines stay: a table that is open beside one stays open, and keeps the focus.
    if (shape !== drawn) {
      close();
      drawn = shape;
      charts = [
        new Chart({
          title: t(`count.${asked.count}`),
          unit: t(told.step === 3600 ? "unit.per.hour" : "unit.per.min"),
          series,
          dates,
        }),
        timed &&
          new Chart({
            title: t("overview.latency"),
            unit: t("unit.ms"),
            dates,
            series: [
              { label: t("overview.p50"), colour: "c1" },
              { label: t("overview.p99"), colour: "c3" },
            ],
          }),
      ].filter(Boolean);
      fill(
        body,
        charts.map((chart) => chart.element),
      );
    }
    const [main, latency] = charts;
    const sum = lines.reduce((all, line) => all + line.values.reduce((a, b) => a + (b ?? 0), 0), 0);
    main.show(
      [times, ...lines.map((line) => line.values)],
      h("span", { class: "big" }, count(sum)),
      " ",
      h("span", { class: "unit" }, t("history.total")),
    );
    latency?.show([times, p50.slice(0, times.length), p99.slice(0, times.length)]);
  }

  signal.addEventListener("abort", () => {
    clearTimeout(timer);
    close();
  });
  document.addEventListener("visibilitychange", renew, { signal });
  onRecovery(load);
  load();
}

/** The moments of an answer's points, in seconds since 1970. */
function steps({ from, step, series, latency_ms: latency }) {
  const start = typeof from === "number" ? from : Date.parse(from) / 1000;
  const length = Math.max(...series.map((each) => each.published.length), latency?.p50?.length ?? 0);
  return Array.from({ length }, (_, i) => start + i * step);
}

/** The largest series, and all others as one. */
function largest(series, name) {
  const sum = (values) => values.reduce((all, each) => all + (each ?? 0), 0);
  const all = series
    .map(({ key, [name]: values }) => ({ key: key ?? "", values: values ?? [] }))
    .sort((a, b) => sum(b.values) - sum(a.values));
  const named = all.filter(({ key }) => key !== "other");
  const shown = named.slice(0, MOST_LINES - 1);
  const rest = [...named.slice(MOST_LINES - 1), ...all.filter(({ key }) => key === "other")];
  if (rest.length)
    shown.push({
      key: "other",
      values: rest[0].values.map((_, i) => rest.reduce((n, { values }) => n + (values[i] ?? 0), 0)),
    });
  return shown;
}
