import { type MaybeRefOrGetter, onScopeDispose, type ShallowRef, shallowRef, toValue, watch } from "vue";
import { MsgPush, type Options } from "./index.js";

/** What to do with what comes, by the names that `on` takes. */
export type Handlers = Record<string, (...told: any[]) => void>;

export interface MsgPushRefs {
  client: Readonly<ShallowRef<MsgPush | null>>;
  /** Whether a stream is open now. */
  open: Readonly<ShallowRef<boolean>>;
}

/** A client for as long as the scope is there. Options may be a ref or a getter: another client takes its place then. */
export function useMsgPush(url: string, options: MaybeRefOrGetter<Options>, handlers: Handlers): MsgPushRefs {
  const client = shallowRef<MsgPush | null>(null);
  const open = shallowRef(false);

  function begin(): void {
    client.value?.close();
    open.value = false;
    const next = (client.value = new MsgPush(url, toValue(options)));
    for (const [name, hear] of Object.entries(handlers)) next.on(name, hear);
    next.on("open", () => (open.value = true));
    next.on("close", () => (open.value = false));
  }

  watch(() => JSON.stringify(toValue(options)), begin, { immediate: true, flush: "sync" });
  onScopeDispose(() => client.value?.close());
  return { client, open };
}
