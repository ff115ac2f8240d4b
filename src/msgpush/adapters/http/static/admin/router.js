// Which view is shown, and of what: it stands behind the # of the address, so that it can be kept and sent.

export function place() {
  const [name, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { name: name || "overview", params: Object.fromEntries(new URLSearchParams(query)) };
}

/** The address of a view. */
export function to(name, params = {}) {
  const given = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(given).toString();
  return `#/${name}${query ? `?${query}` : ""}`;
}

/** Say in the address what is shown now, without showing it anew. */
export function note(name, params) {
  history.replaceState(null, "", to(name, params));
}

export const go = (name, params) => void (location.hash = to(name, params));
export const onPlace = (act) => addEventListener("hashchange", act);
