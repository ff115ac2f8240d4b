// The build for pages without a bundler: `MsgPush`, with all that it may load.
import { MsgPush } from "./index.js";

(globalThis as { MsgPush?: typeof MsgPush }).MsgPush = MsgPush;
