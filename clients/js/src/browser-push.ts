// The same for pages: `MsgPushDevice`, beside `MsgPush` of msgpush.js.
import { disablePush, enablePush } from "./push.js";

(globalThis as { MsgPushDevice?: object }).MsgPushDevice = { enablePush, disablePush };
