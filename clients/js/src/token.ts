import type { Token, TokenSource } from "./types.js";

export function tokenOf(source: TokenSource = ""): Token {
  let known: Promise<string> | undefined;
  return {
    renewable: typeof source === "function",
    get() {
      known ??= Promise.resolve(typeof source === "function" ? source() : source);
      known.catch(() => (known = undefined));
      return known;
    },
    forget() {
      known = undefined;
    },
  };
}
