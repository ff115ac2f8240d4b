// An app that shows how far a job is, and listens to another user when it is told to.
import { createApp, h, ref } from "vue";
import { useMsgPush } from "../../src/vue.ts";

const app = createApp({
  setup() {
    const user = ref("alice");
    const progress = ref(0);
    const show = (data) => (progress.value = `${user.value} ${data.progress}`);
    const { open } = useMsgPush(globalThis.base, () => ({ user: user.value }), { progress: show });
    const change = () => (user.value = "bob");
    return () => h("button", { onClick: change }, `${open.value ? "open" : "closed"} ${progress.value}`);
  },
});
app.mount(document.body);
globalThis.leave = () => app.unmount();
