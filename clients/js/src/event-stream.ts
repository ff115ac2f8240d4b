import type { Frame } from "./types.js";

/** Makes frames of an event stream's text (WHATWG HTML, section 9.2), as its pieces come. */
export function eventStream(take: (frame: Frame) => void): (text: string) => void {
  let rest = "";
  let event = "";
  let data: string | undefined;
  let id: string | undefined;
  let retry: number | undefined;

  function line(text: string): void {
    if (!text) {
      if (data !== undefined) take({ event: event || "message", id, data: JSON.parse(data), retry });
      event = "";
      data = id = undefined;
      return;
    }
    const colon = text.indexOf(":");
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
    if (name === "event") event = value;
    if (name === "data") data = data === undefined ? value : `${data}\n${value}`;
    if (name === "id") id = value;
    if (name === "retry") retry = +value;
  }

  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop()!;
    lines.forEach(line);
  };
}
