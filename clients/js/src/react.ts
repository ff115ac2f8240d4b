import { useEffect, useRef, useState } from "react";
import { MsgPush, type Options } from "./index.js";

/** What to do with what comes, by the names that `on` takes. */
export type Handlers = Record<string, (...told: any[]) => void>;

export interface MsgPushState {
  /** Null until the component is mounted. */
  client: MsgPush | null;
  /** Whether a stream is open now. */
  open: boolean;
}

/**
 * A client for as long as the component is there. Another one takes its place when what it listens to changes; handlers
 * and a token's function may be new ones each time.
 */
export function useMsgPush(url: string, options: Options, handlers: Handlers): MsgPushState {
  const newest = useRef({ options, handlers });
  newest.current = { options, handlers };
  const [state, setState] = useState<MsgPushState>({ client: null, open: false });
  const names = Object.keys(handlers).sort();
  const fixed = JSON.stringify([url, options, names]);

  useEffect(() => {
    const { options } = newest.current;
    const { token } = options;
    const fresh = () => {
      const source = newest.current.options.token;
      return typeof source === "function" ? source() : source!;
    };
    const client = new MsgPush(url, typeof token === "function" ? { ...options, token: fresh } : options);
    for (const name of names) client.on(name, (...told) => newest.current.handlers[name]?.(...told));
    client.on("open", () => setState({ client, open: true }));
    client.on("close", () => setState({ client, open: false }));
    setState({ client, open: false });
    return () => client.close();
  }, [fixed]);

  return state;
}
