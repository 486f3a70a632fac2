"""Lost rules go back as bytes, to the places that the edits name, or not at all."""

from __future__ import annotations

import asyncio
import errno
import random
import struct
from collections.abc import Iterable, Sequence
from itertools import count

import pytest

from vnetd.backends import process
from vnetd.backends.firewalls import iptables_nft
from vnetd.backends.firewalls import nf_messages as nf
from vnetd.backends.firewalls.nf_messages import RawChain
from vnetd.backends.firewalls.nf_tables import Tell
from vnetd.backends.netlink import Generation, attributes, messages
from vnetd.core.keep.rules import ChainEdits
from vnetd.core.model import Chain, Family
from vnetd.core.rules import repair
from vnetd.errors import Outdated

POSTROUTING = Chain(Family.IPV4, "nat", "POSTROUTING")
PRIVATE = Chain(Family.IPV4, "nat", "LIBVIRT_PRT")
BASE = nf.base(4, 100, "nat")
OURS = tuple(f"-s 10.0.{number}.0/24 -j MASQUERADE" for number in range(6))
FOREIGN = tuple(f"-s 192.0.2.{number}/32 -j ACCEPT" for number in range(3))


class Kernel:
    """nf_tables of the family IPv4, and the tool that prints it."""

    def __init__(self) -> None:
        self.generation: int | None = 1
        self.chains: dict[str, list[tuple[int, bytes]]] = {}
        self._handles = count(1)
        self._tell: list[Tell] = []

    def subscribe(self, tell: Tell) -> None:
        self._tell.append(tell)

    def drain(self) -> None:
        pass

    def put(self, chain: Chain, texts: Iterable[str]) -> None:
        self.chains[chain.name] = [(next(self._handles), nf.rule(x.encode())) for x in texts]
        self.changed()

    def changed(self) -> None:
        self.generation = (self.generation or 0) + 1
        tables = frozenset({(2, "nat")})
        for tell in self._tell:
            tell(Generation("iptables", 1, tables, 1, self.generation, 1))

    def texts(self, chain: Chain) -> tuple[str, ...]:
        return tuple(attributes(rule)[4].decode() for _, rule in self.chains[chain.name])

    def read(self, family: int, tables: Iterable[str]) -> dict[str, dict[str, RawChain]]:
        if family != 2 or "nat" not in tables or not self.chains:
            return {}
        return {
            "nat": {
                name: RawChain(
                    BASE if name == POSTROUTING.name else b"",
                    rules=[rule for _, rule in rules],
                    handles=[handle for handle, _ in rules],
                )
                for name, rules in self.chains.items()
            }
        }

    async def run(self, argv: Sequence[str], stdin: str = "") -> str:
        if argv[0] != "iptables-nft-save":
            return ""
        lines = ["*nat"]
        for name in self.chains:
            lines.append(f":{name} {'ACCEPT' if name == POSTROUTING.name else '-'} [0:0]")
        for name in self.chains:
            texts = self.texts(Chain(Family.IPV4, "nat", name))
            lines += [f"-A {name} {text}" for text in texts]
        return "\n".join([*lines, "COMMIT", ""])

    def write(self, steps: Iterable[bytes], generation: int) -> None:
        if generation != self.generation:
            raise OSError(errno.ERESTART, "again")
        for step in steps:
            ((kind, body),) = messages(step)
            self._do(kind & 0xFF, attributes(body[4:]))
        self.changed()

    def _do(self, kind: int, found: dict[int, bytes]) -> None:
        if kind == 3:
            assert (5 in found) == (found[3] == b"POSTROUTING\0")  # a policy, where it is hooked in
            self.chains[found[3][:-1].decode()] = []
        if kind not in (6, 8):
            return
        rules = self.chains[found[2][:-1].decode()]
        at = {handle: place for place, (handle, _) in enumerate(rules)}
        if kind == 8:
            del rules[at[_number(found[3])]]
        else:
            place = at[_number(found[6])] if 6 in found else len(rules)
            rules.insert(place, (next(self._handles), nf.rule(found[4])))


def _number(value: bytes) -> int:
    (found,) = struct.unpack(">Q", value)
    return int(found)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(process, "run", kernel.run)
    kernel.put(POSTROUTING, ("-j LIBVIRT_PRT",))
    kernel.put(PRIVATE, OURS)
    return kernel


async def looked(kernel: Kernel) -> iptables_nft.IptablesNft:
    tables = iptables_nft.IptablesNft(kernel)  # type: ignore[arg-type]
    await look(tables)
    return tables


async def look(tables: iptables_nft.IptablesNft) -> None:
    for family in Family:
        await tables.read(family)


def edits(kernel: Kernel, *, new: bool = False, expected: Sequence[str] = OURS) -> ChainEdits:
    now = () if new else kernel.texts(PRIVATE)
    return ChainEdits(chain=PRIVATE, new=new, edits=tuple(repair.edits(now, expected)))


def test_edits_lead_where_they_say(kernel: Kernel) -> None:
    async def run() -> None:
        tables = await looked(kernel)
        chance = random.Random(7)
        for _ in range(200):
            kept = chance.sample(OURS, chance.randint(0, len(OURS)))
            now = [*kept, *chance.sample(kept, len(kept) // 3), *FOREIGN]
            chance.shuffle(now)
            kernel.put(PRIVATE, now)
            await look(tables)
            plan = edits(kernel)
            assert await tables.restore([plan], tables.generation)
            have = kernel.texts(PRIVATE)
            assert not repair.flaws(have, OURS)
            assert [x for x in have if x in FOREIGN] == [x for x in now if x in FOREIGN]
            await look(tables)

    asyncio.run(run())


def test_a_table_that_is_gone_is_made_again_and_hooked_in(kernel: Kernel) -> None:
    async def run() -> None:
        tables = await looked(kernel)
        kernel.chains.clear()
        kernel.changed()
        await look(tables)
        jump = ChainEdits(chain=POSTROUTING, new=False, edits=(repair.Edit("-j LIBVIRT_PRT", 1),))
        assert await tables.restore([jump, edits(kernel, new=True)], tables.generation)
        assert kernel.texts(PRIVATE) == OURS
        assert kernel.texts(POSTROUTING) == ("-j LIBVIRT_PRT",)

    asyncio.run(run())


def test_nothing_is_done_where_somebody_has_written_since(kernel: Kernel) -> None:
    async def run() -> None:
        tables = await looked(kernel)
        kernel.put(PRIVATE, OURS[1:])
        await look(tables)
        plan, generation = edits(kernel), tables.generation
        kernel.put(PRIVATE, OURS)  # libvirt itself, just now
        with pytest.raises(Outdated):
            await tables.restore([plan], generation)
        await look(tables)  # also where somebody else has looked meanwhile
        with pytest.raises(Outdated):
            await tables.restore([plan], generation)
        assert kernel.texts(PRIVATE) == OURS

    asyncio.run(run())


def test_what_was_never_seen_is_left_to_the_tool(kernel: Kernel) -> None:
    async def run() -> None:
        tables = await looked(kernel)
        plan = edits(kernel, expected=(*OURS, "-s 10.9.9.0/24 -j MASQUERADE"))
        assert not await tables.restore([plan], tables.generation)
        assert kernel.texts(PRIVATE) == OURS

    asyncio.run(run())
