"""Policy files that cannot be trusted or read are refused, and nothing hangs on them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from vnetd.backends.files import DirectoryWatch, read_policy
from vnetd.errors import PolicyError


def test_no_file_is_no_policy(tmp_path: Path) -> None:
    assert read_policy(tmp_path / "vnetd.toml") == []


def test_drop_ins_follow_in_order_of_their_names(tmp_path: Path) -> None:
    main = tmp_path / "vnetd.toml"
    main.write_text("a = 1")
    drop_ins = tmp_path / "vnetd.toml.d"
    drop_ins.mkdir()
    for name in ("20-b.toml", "10-a.toml", "ignored.txt", "30-c.toml~"):
        (drop_ins / name).write_text("b = 1")
    names = [Path(text.file).name for text in read_policy(main)]
    assert names == ["vnetd.toml", "10-a.toml", "20-b.toml"]


@pytest.mark.parametrize("kind", ["fifo", "directory", "world-writable", "binary", "huge"])
def test_what_is_refused(tmp_path: Path, kind: str) -> None:
    main = tmp_path / "vnetd.toml"
    match kind:
        case "fifo":
            os.mkfifo(main)
        case "directory":
            main.mkdir()
        case "world-writable":
            main.write_text("")
            main.chmod(0o666)
        case "binary":
            main.write_bytes(b'a = 1\nb = "\xff"\n')
        case _:
            main.write_bytes(b"#" * 5_000_000)
    with pytest.raises(PolicyError) as caught:
        read_policy(main)
    assert str(main) in str(caught.value)


def test_only_finished_files_count_as_changes(tmp_path: Path) -> None:
    asyncio.run(see_changes(tmp_path))


def test_an_editors_own_files_do_not_count(tmp_path: Path) -> None:
    asyncio.run(see_only_what_matters(tmp_path))


async def see_only_what_matters(directory: Path) -> None:
    watch = DirectoryWatch([directory], matters=lambda name: name == "vnetd.toml")
    try:
        changed = asyncio.ensure_future(watch.changed())
        for name in (".vnetd.toml.swp", "vnetd.toml~", "4913"):
            (directory / name).write_text("")
        assert not (await asyncio.wait([changed], timeout=0.05))[0]
        (directory / "vnetd.toml").write_text("")
        await asyncio.wait_for(changed, 5)
        changed = asyncio.ensure_future(watch.changed())
        (directory / "vnetd.toml.d").mkdir()
        await asyncio.wait_for(changed, 5)
    finally:
        watch.close()


async def see_changes(directory: Path) -> None:
    watch = DirectoryWatch([directory, directory / "not-there"])
    file = (directory / "vnetd.toml").open("w")
    try:
        changed = asyncio.ensure_future(watch.changed())
        file.write("half")
        file.flush()
        assert not (await asyncio.wait([changed], timeout=0.05))[0]
        file.close()
        await asyncio.wait_for(changed, 5)
        changed = asyncio.ensure_future(watch.changed())
        (directory / "vnetd.toml").rename(directory / "other")
        await asyncio.wait_for(changed, 5)
    finally:
        file.close()
        watch.close()
