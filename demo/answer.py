"""An answer that is written word by word, as a language model does: `... demo.answer URL PACE`.

Pages that reload, and a writer that is restarted, lose and double nothing, and no database is
needed for it: the channel is all the memory there is.

- Each piece is a message with an id made of the answer's and its number, so a piece that is said
  again after an error is stored once.
- A page asks for everything since the earliest message, and shows the pieces in their order.
- A writer that starts reads the channel up to a word of its own. By then it has seen every question
  and every piece, and goes on behind the last one. A real one would give the model what is written
  already, and ask it to go on.
"""

import asyncio
import re
import secrets
import sys
from typing import Any

from msgpush.client import AsyncPublisher, Gap, Listener, Message

SERVICE, CHANNEL = "demo-writer", "answers"
TTL = 604_800
DIRECT = {"trust_env": False}  # the service is on this machine: no proxy is asked for it
FIRST = "What is this good for?"

TEXT = """\
This writer has no model behind it, so it says what it always says. Whatever takes longer than a \
click. An import runs for minutes, a report is made by night, a model writes word by word: \
somebody waits, and wants to see how far it is. The service that does the work says so in a \
message, and whoever listens has it a moment later. This very answer comes that way. Reload the \
page in the middle of it: nothing is missing, and nothing comes twice, since each word has a \
number, and the page says up to where it has got them. Stop the process that writes it: another \
one reads what is written already, and goes on behind the last word. Stop the service itself: it \
has forgotten everything, says so, and all of it is said again."""
PIECES = re.findall(r"\S+\s*", TEXT)


class Writer:
    """Answers each question that is asked on the channel. What is written it knows from there.

    Args:
        pace: seconds a piece.
    """

    def __init__(self, publisher: AsyncPublisher, pace: float) -> None:
        self._publisher, self._pace = publisher, pace
        self._questions: dict[str, str] = {}
        self._answers: dict[str, set[int]] = {}  # the numbers of the pieces that the channel has
        self._changed = asyncio.Event()

    def hear(self, message: Message) -> None:
        """Take what was asked, and what was written, by this process or an earlier one."""
        data = message.data
        if "question" in data:
            self._questions[data["answer"]] = data["question"]
            self._answers.setdefault(data["answer"], set())
        elif "number" in data and data["answer"] in self._answers:
            self._answers[data["answer"]].add(data["number"])
        self._changed.set()

    @property
    def has_questions(self) -> bool:
        """Whether anything was asked yet."""
        return bool(self._questions)

    async def ask(self, id: str, question: str) -> None:
        """Ask a question."""
        await self._say({"answer": id, "question": question}, f"{id}-{secrets.token_hex(4)}")

    async def begin_anew(self) -> None:
        """The log was lost, with all questions and answers."""
        self._answers.clear()
        for id, question in list(self._questions.items()):
            await self.ask(id, question)

    async def come_back(self) -> str:
        """Say a word in the channel: who has heard it has heard all that was before."""
        return await self._say({"writer": "is back"}, secrets.token_hex(8))

    async def write(self) -> None:
        """Write what of the answers is missing, for ever."""
        while True:
            self._changed.clear()
            for id, written in reversed(self._answers.items()):  # the newest first: it is shown
                left = (number for number in range(len(PIECES)) if number not in written)
                if (number := next(left, None)) is not None:
                    await asyncio.sleep(self._pace)
                    last = number == len(PIECES) - 1
                    data = {"answer": id, "number": number, "text": PIECES[number], "last": last}
                    await self._say(data, f"{id}-{number}")
                    break
            # For the next question, or to hear this piece: then it is written.
            await self._changed.wait()

    async def _say(self, data: dict[str, Any], id: str) -> str:
        sent = await self._publisher.send("custom", data, channels=[CHANNEL], id=id, ttl=TTL)
        return sent.key


async def run(url: str, pace: float) -> None:
    """Write answers until this process is ended, a piece each `pace` seconds."""
    async with (
        AsyncPublisher(url, service=SERVICE, http=DIRECT) as publisher,
        Listener(url, channels=[CHANNEL], since="earliest", http=DIRECT) as listener,
        asyncio.TaskGroup() as tasks,
    ):
        writer = Writer(publisher, pace)
        mine = await writer.come_back()
        async for event in listener:
            match event:
                case Gap(reason="reset"):
                    tasks.create_task(writer.begin_anew())
                case Message():
                    writer.hear(event)
                    if event.key == mine:
                        if not writer.has_questions:
                            await writer.ask("first", FIRST)
                        print("ready", flush=True)
                        tasks.create_task(writer.write())


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], float(sys.argv[2])))
