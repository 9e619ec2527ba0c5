"""The real hub client against a local server: what goes right, and what can go wrong in between."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import COMMIT, Client, HubServer
from safetensors.torch import save

import correlation_aware as ca
from correlation_aware import weights
from correlation_aware._files import sha256_file
from correlation_aware.weights import WeightsEntry, fetch
from correlation_aware.weights.hub import fetch_file

GOOD = save({"stages.0.embed.proj.weight": torch.arange(60000.0)})
SHA256 = hashlib.sha256(GOOD).hexdigest()
ENTRY: dict[str, Any] = {
    "model": "sbt_test",
    "tag": "here",
    "source": "hub",
    "file": "model.safetensors",
    "license": "apache-2.0",
    "key_format": "correlation_aware",
    "role": "model",
    "training": "None.",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "repository": "org/name",
    "revision": "main",
    "input_size": 64,
    "notes": "The Hub's LFS hash is checked.",
}


@pytest.fixture(scope="module")
def shared_server() -> HubServer:
    return HubServer()


@pytest.fixture
def server(shared_server: HubServer) -> HubServer:
    shared_server.reset()
    shared_server.files["org/name/model.safetensors"] = GOOD
    shared_server.files["org/name/config.json"] = b'{"architecture": "sbt_test"}'
    return shared_server


@pytest.fixture(scope="module")
def clients(
    shared_server: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Client]]:
    home = tmp_path_factory.mktemp("clients")
    clients = {
        # First, since this one waits: the hub client tries again for about 25 seconds before it gives up.
        "unreachable": Client(home / "unreachable", "http://127.0.0.1:1"),
        "online": Client(home / "online", shared_server.endpoint),
        "other": Client(home / "other", shared_server.endpoint),
        "offline": Client(home / "offline", shared_server.endpoint, HF_HUB_OFFLINE="1"),
    }
    clients["unreachable"].send("fetch", ENTRY)
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def online(clients: dict[str, Client]) -> Client:
    return clients["online"]


def files_in(folder: Path) -> list[Path]:
    """Files and links below a folder, but for the client's own locks, notes and tags."""
    found = [p for p in folder.rglob("*") if p.is_file() or p.is_symlink()]
    return [p for p in found if {"blobs", "snapshots"} & set(p.parts)]


def test_fetch_then_offline(
    server: HubServer, clients: dict[str, Client], online: Client, tmp_path: Path
) -> None:
    path = online.call("fetch", ENTRY, cache_dir=tmp_path)["ok"]
    assert path.read_bytes() == GOOD
    assert weights.read_state_dict(path)["stages.0.embed.proj.weight"].shape == (60000,)

    server.requests.clear()
    assert online.call("fetch", ENTRY, cache_dir=tmp_path)["ok"] == path
    assert not any(r.startswith("GET") for r in server.requests)

    server.requests.clear()
    assert clients["offline"].call("fetch", ENTRY, cache_dir=tmp_path)["ok"] == path
    assert server.requests == []

    path.resolve().write_bytes(GOOD[:-1] + b"x")  # a cache gone bad is found without network too
    answer = clients["offline"].call("fetch", ENTRY, cache_dir=tmp_path)
    assert "RuntimeError" in answer["error"] and SHA256 in answer["message"]
    assert files_in(tmp_path) == []


def test_offline_without_cache(server: HubServer, clients: dict[str, Client], tmp_path: Path) -> None:
    url = f"{server.endpoint}/org/name/resolve/main/model.safetensors"
    entries = (
        ENTRY,
        ENTRY
        | {"source": "url", "url": url, "repository": None, "revision": None, "bytes": 9, "sha256": SHA256},
    )
    for entry in entries:
        answer = clients["offline"].call("fetch", entry, cache_dir=tmp_path)
        assert "FileNotFoundError" in answer["error"]
        assert url in answer["message"] and "HF_HUB_OFFLINE" in answer["message"]
        assert "by hand" in answer["message"] or "pretrained=" in answer["message"]
    assert server.requests == []


def test_home_and_endpoint_are_honoured(server: HubServer, online: Client) -> None:
    path = online.call("fetch", ENTRY)["ok"]
    assert path.is_relative_to(online.home / "hub")
    shutil.rmtree(online.home / "hub")


@pytest.mark.parametrize(
    ("remove", "revision", "said"),
    [
        ("org/name/model.safetensors", "main", "no such file"),
        ("org/name", "main", "no such repository"),
        ("", "v9", "no such revision"),
    ],
)
def test_not_found(
    server: HubServer, online: Client, tmp_path: Path, remove: str, revision: str, said: str
) -> None:
    for name in [name for name in server.files if remove and name.startswith(remove)]:
        del server.files[name]
    answer = online.call("fetch", ENTRY | {"revision": revision}, cache_dir=tmp_path)
    assert "FileNotFoundError" in answer["error"]
    assert said in answer["message"]
    assert f"{server.endpoint}/org/name/resolve/{revision}/model.safetensors" in answer["message"]


def test_gated(server: HubServer, online: Client, tmp_path: Path) -> None:
    server.mode = "gated"
    answer = online.call("fetch", ENTRY, cache_dir=tmp_path)
    assert (
        "FileNotFoundError" in answer["error"]
        and f"Ask for it at {server.endpoint}/org/name" in answer["message"]
    )


@pytest.mark.parametrize("pinned", [SHA256, None])
def test_wrong_bytes_are_removed(
    server: HubServer, online: Client, tmp_path: Path, pinned: str | None
) -> None:
    server.mode = "wrong"
    answer = online.call("fetch", ENTRY | {"sha256": pinned}, cache_dir=tmp_path)
    found = hashlib.sha256(bytes(byte ^ 1 for byte in GOOD)).hexdigest()
    assert "RuntimeError" in answer["error"]
    assert all(
        part in answer["message"] for part in (SHA256, found, "model.safetensors", "removed", server.endpoint)
    )
    assert files_in(tmp_path) == []

    server.mode = "ok"
    path = online.call("fetch", ENTRY | {"sha256": pinned}, cache_dir=tmp_path)["ok"]
    assert path.read_bytes() == GOOD


def test_other_file_than_pinned(server: HubServer, online: Client, tmp_path: Path) -> None:
    answer = online.call("fetch", ENTRY | {"sha256": "0" * 64}, cache_dir=tmp_path)
    assert "RuntimeError" in answer["error"] and SHA256 in answer["message"]
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("mebibytes", [1, 24])
def test_cut_connection_goes_on(server: HubServer, online: Client, tmp_path: Path, mebibytes: int) -> None:
    """The client writes 10 MiB at a time: it starts a small file again and goes on with a large one."""
    content = server.files["org/name/model.safetensors"] = bytes(range(256)) * 4096 * mebibytes
    server.mode = "cut_once"
    answer = online.call("fetch", ENTRY, cache_dir=tmp_path)
    if "error" in answer:  # huggingface_hub < 1 goes on at the next call only
        assert "ConnectionError" in answer["error"]
        answer = online.call("fetch", ENTRY, cache_dir=tmp_path)
    assert answer["ok"].read_bytes() == content
    gets = [r.partition("bytes=")[2] for r in server.requests if r.startswith("GET")]
    assert len(gets) == 2 and (gets[1] or mebibytes < 20)


def test_a_server_that_says_a_wrong_length(server: HubServer, online: Client, tmp_path: Path) -> None:
    server.mode = "long"
    answer = online.call("fetch", ENTRY, cache_dir=tmp_path)
    assert "ConnectionError" in answer["error"] and "model.safetensors" in answer["message"], answer
    assert all(file.suffix == ".incomplete" for file in files_in(tmp_path))
    url = f"{server.endpoint}/org/name/resolve/main/model.safetensors"
    with pytest.raises(ConnectionError, match=rf"cut after {len(GOOD)} of 10+ bytes"):
        fetch_file(None, url, tmp_path / "url")  # without a hash, of which it would not be noticed
    assert list((tmp_path / "url").iterdir()) == []


def test_another_server_does_not_get_the_token(server: HubServer, online: Client, tmp_path: Path) -> None:
    other = HubServer()
    other.files.update(server.files)
    server.mode, server.other = "redirect", other.endpoint
    answer = online.call("fetch", ENTRY | {"sha256": SHA256}, cache_dir=tmp_path)
    assert answer.get("ok"), answer
    assert set(server.tokens) == {"Bearer hf_test"}
    assert other.tokens and set(other.tokens) == {None}
    other.shutdown()


@pytest.mark.parametrize("mode", ["short", "cut"])
def test_half_a_file_never_loads(server: HubServer, online: Client, tmp_path: Path, mode: str) -> None:
    server.mode = mode
    answer = online.call("fetch", ENTRY, cache_dir=tmp_path)
    assert "ConnectionError" in answer["error"] and "try again" in answer["message"]
    assert [p for p in files_in(tmp_path) if not p.name.endswith(".incomplete")] == []

    server.mode = "ok"
    path = online.call("fetch", ENTRY, cache_dir=tmp_path)["ok"]
    assert path.read_bytes() == GOOD


def test_two_processes_at_once(server: HubServer, clients: dict[str, Client], tmp_path: Path) -> None:
    both = clients["online"], clients["other"]
    for client in both:
        client.call("fetch", ENTRY | {"repository": "org/none"})  # both have started and imported everything
    server.requests.clear()
    server.mode = "slow"
    for client in both:
        client.send("fetch", ENTRY, cache_dir=tmp_path)
    paths = {client.receive()["ok"] for client in both}
    assert len(paths) == 1
    assert paths.pop().read_bytes() == GOOD
    assert len(files_in(tmp_path)) == 2  # one blob, one link
    methods = [request.split()[0] for request in server.requests]
    assert sorted(methods) == ["GET", "HEAD", "HEAD"]  # both asked, one waited for the other's download


FETCH = "answer = ca.weights.fetch(ca.weights.WeightsEntry(**entry), cache_dir=cache_dir)"


def test_cache_without_links(server: HubServer, clients: dict[str, Client], tmp_path: Path) -> None:
    """As on a file system without symbolic links: the Hub is asked for its hash; offline there is a log."""
    path = clients["online"].call("fetch", ENTRY, cache_dir=tmp_path)["ok"]
    path.resolve().replace(path)
    arguments: dict[str, Any] = {"entry": ENTRY, "cache_dir": tmp_path}
    assert clients["online"].call("python", FETCH, **arguments)["ok"] == (path, "")
    actual, log = clients["offline"].call("python", FETCH, **arguments)["ok"]
    assert actual == path and f"{path} was not verified: its cache has no hash of it" in log
    arguments["entry"] = ENTRY | {"sha256": SHA256}
    assert clients["offline"].call("python", FETCH, **arguments)["ok"] == (path, "")
    path.write_bytes(GOOD[::-1])
    assert "RuntimeError" in clients["online"].call("fetch", ENTRY, cache_dir=tmp_path)["error"]
    assert not path.exists()


def test_a_copied_cache(server: HubServer, clients: dict[str, Client], tmp_path: Path) -> None:
    """A copy in which links became files is verified by the names of its blobs, without network."""
    load = "answer = ca.weights.fetch_repository('org/name', cache_dir=cache_dir)[1]"
    clients["online"].call("python", load, cache_dir=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=False)
    server.requests.clear()
    path, log = clients["offline"].call("python", load, cache_dir=tmp_path / "b")["ok"]
    assert path.is_relative_to(tmp_path / "b") and not path.is_symlink()
    assert path.read_bytes() == GOOD and log == "" and server.requests == []
    path.write_bytes(GOOD[::-1])
    answer = clients["offline"].call("python", load, cache_dir=tmp_path / "b")
    assert "RuntimeError" in answer["error"] and f"{path} cannot be verified" in answer["message"]
    answer = clients["online"].call("python", load, cache_dir=tmp_path / "b")
    assert "another hash than expected" in answer["message"] and not path.exists()


def test_no_hash_is_refused(server: HubServer, online: Client, tmp_path: Path) -> None:
    server.mode = "no_etag"
    answer = online.call("fetch", ENTRY, cache_dir=tmp_path)
    assert "RuntimeError" in answer["error"] and "cannot be verified" in answer["message"]


@pytest.mark.parametrize("name", ["org/name", "hf-hub:org/name@main", f"org/name@{COMMIT}"])
def test_repository(server: HubServer, online: Client, tmp_path: Path, name: str) -> None:
    config, path = online.call("fetch_repository", name, cache_dir=tmp_path)["ok"]
    assert config == {"architecture": "sbt_test"}
    assert path.read_bytes() == GOOD
    assert path.parent.name == COMMIT


def test_repository_mistakes(server: HubServer, online: Client, tmp_path: Path) -> None:
    for name, said in (
        ("nonsense", "organisation/name"),
        ("org/name@v9", "no such revision"),
        ("org/other", "no such repo"),
    ):
        answer = online.call("fetch_repository", name, cache_dir=tmp_path)
        assert said in answer["message"], name
    assert "two revisions" in online.call("fetch_repository", "org/name@a", revision="b")["message"]
    for content, said in ((b"{", "not JSON"), (b"[1]", "not a JSON object")):
        server.files["org/name/config.json"] = content
        answer = online.call("fetch_repository", "org/name", cache_dir=tmp_path / said)
        assert "ValueError" in answer["error"] and said in answer["message"]
    del server.files["org/name/model.safetensors"]
    assert (
        "model.safetensors was not found"
        in online.call("fetch_repository", "org/name", cache_dir=tmp_path / "b")["message"]
    )


def test_config_is_verified(server: HubServer, online: Client, tmp_path: Path) -> None:
    server.mode = "wrong"
    answer = online.call("fetch_repository", "org/name", cache_dir=tmp_path)
    assert "RuntimeError" in answer["error"] and "config.json" in answer["message"]
    assert files_in(tmp_path) == []


def test_url(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"{server.endpoint}/org/name/resolve/main/model.safetensors"
    fields = ENTRY | {"source": "url", "url": url, "repository": None, "revision": None}
    entry = WeightsEntry(**fields, bytes=len(GOOD), sha256=SHA256)
    for mode, error, text in (
        ("wrong", RuntimeError, SHA256),
        ("cut", ConnectionError, "cut after 120.* bytes"),
    ):
        server.mode = mode
        with pytest.raises(error, match=text):
            fetch(entry, tmp_path)
        assert list(tmp_path.iterdir()) == []
    server.mode = "ok"
    path = fetch(entry, tmp_path)
    assert path.read_bytes() == GOOD and path.name == f"sbt_test.here-{SHA256[:8]}.safetensors"
    server.requests.clear()
    assert fetch(entry, tmp_path) == path
    assert server.requests == []
    path.write_bytes(b"")
    with pytest.raises(RuntimeError, match="removed"):
        fetch(entry, tmp_path)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        fetch(replace(entry, url=f"{url}.not"), tmp_path)
    with pytest.raises(ConnectionError, match="by hand"):
        fetch(replace(entry, url="http://127.0.0.1:1/x"), tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileExistsError):  # a folder that cannot be is not a network's fault
        fetch(entry, tmp_path / "file")


def test_bundled() -> None:
    digest = sha256_file(weights.manifest.MANIFEST_PATH)
    fields = ENTRY | {
        "source": "bundled",
        "file": "weights_manifest.json",
        "repository": None,
        "revision": None,
    }
    entry = WeightsEntry(**fields, bytes=1, sha256=digest)
    assert fetch(entry) == weights.manifest.MANIFEST_PATH
    with pytest.raises(RuntimeError, match="Install the package again"):
        fetch(replace(entry, sha256="0" * 64))
    assert weights.manifest.MANIFEST_PATH.is_file()
    with pytest.raises(FileNotFoundError, match="Install the package again"):
        fetch(replace(entry, file="none.safetensors"))


@pytest.mark.parametrize("library", ["ca", "timm"])
@pytest.mark.parametrize("argument", ["pretrained_cfg", "pretrained_cfg_overlay"])
@pytest.mark.parametrize("kind", ["hf_hub_id", "hf_hub_filename", "url", "url_with_hash"])
def test_locations_of_a_timm_configuration(
    server: HubServer, online: Client, tmp_path: Path, library: str, argument: str, kind: str
) -> None:
    """For a name with weights of its own in the manifest, which are not loaded then."""
    name = "sbt_light_half_track"
    expected = ca.create_model(name).state_dict()
    content = save(expected)
    digest = hashlib.sha256(content).hexdigest()
    files = {
        "org/name/model.safetensors": content,
        "org/name/sub/other.safetensors": content,
        f"org/name/net-{digest[:12]}.safetensors": content,
    }
    used = list(files)[("hf_hub_id", "hf_hub_filename", "url_with_hash").index(kind) if kind != "url" else 1]
    server.files.update({file: files[file] if file == used else save({"a": torch.ones(1)}) for file in files})
    url = f"{server.endpoint}/org/name/resolve/main/{used.removeprefix('org/name/')}"
    cfg = {
        "hf_hub_id": {"hf_hub_id": "org/name@main"},
        "hf_hub_filename": {"hf_hub_id": "org/name", "hf_hub_filename": "sub/other.safetensors"},
        "url": {"url": url},
        "url_with_hash": {"url": url},
    }[kind]
    code = (
        f"model = {library}.create_model(name, pretrained=True, {argument}=cfg, cache_dir=cache_dir)\n"
        "answer = model.weights_name, {k: v.numpy() for k, v in model.state_dict().items()}"
    )
    (weights_name, actual), log = online.call("python", code, name=name, cfg=cfg, cache_dir=tmp_path)["ok"]
    assert weights_name == (url if "url" in kind else f"hf-hub:{cfg['hf_hub_id']}")
    assert all(torch.equal(torch.from_numpy(actual[key]), expected[key]) for key in expected)
    if kind == "url":
        assert f"{url} was not verified" in log and digest in log and "register_weights" in log
    else:
        assert log == ""
    server.mode = "wrong"
    answer = online.call("python", code, name=name, cfg=cfg, cache_dir=tmp_path / "again")
    assert "RuntimeError" in answer["error"]
    said = {
        "url": "is not a complete safetensors file",
        "url_with_hash": "does not have the hash in its name",
    }
    assert said.get(kind, "has another hash than expected") in answer["message"]


def test_a_backbone_by_its_name_in_timm(server: HubServer, online: Client, tmp_path: Path) -> None:
    expected = timm.create_model("test_efficientnet").state_dict()
    server.files["timm/test_efficientnet.r160_in1k/model.safetensors"] = save(expected)
    code = (
        "model = ca.create_model(name, pretrained='timm:test_efficientnet', cache_dir=cache_dir)\n"
        "answer = model.weights_name, {k: v.numpy() for k, v in model.image_backbone.state_dict().items()}"
    )
    answer, log = online.call("python", code, name="siam_test_track", cache_dir=tmp_path)["ok"]
    assert answer[0] == "timm:test_efficientnet" and log == ""
    assert len(answer[1]) > 50
    assert all(torch.equal(torch.from_numpy(v), expected[k]) for k, v in answer[1].items())
    server.files.clear()
    answer = online.call("python", code, name="siam_test_track", cache_dir=tmp_path / "again")
    assert "FileNotFoundError" in answer["error"]


def test_addresses_with_one_name_are_two_files(server: HubServer, online: Client, tmp_path: Path) -> None:
    server.files["org/other/model.safetensors"] = save({"a": torch.ones(1)})
    fetch = "from correlation_aware.weights.hub import fetch_file\nanswer = fetch_file(None, url, cache_dir)"
    urls = [f"{server.endpoint}/org/{name}/resolve/main/model.safetensors" for name in ("name", "other")]
    paths = [online.call("python", fetch, url=url, cache_dir=tmp_path)["ok"][0] for url in urls]
    assert paths[0].read_bytes() == GOOD
    assert paths[1].read_bytes() == server.files["org/other/model.safetensors"]
    server.requests.clear()
    assert online.call("python", fetch, url=urls[0], cache_dir=tmp_path)["ok"][0] == paths[0]
    assert server.requests == []


def test_a_tracker_starts_from_a_vit_of_timm(server: HubServer, online: Client, tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k"
    torch.manual_seed(0)
    tensors = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    content = save(tensors)
    server.files[f"timm/{name}/model.safetensors"] = content
    code = (
        "model = ca.create_model('onestream_vit_tiny_256_ce_track', f'timm:{name}', cache_dir=cache_dir)\n"
        "net, cfg = model.backbone, model.pretrained_cfg\n"
        "weight = net.blocks[11].mlp.fc2.weight.detach().numpy()\n"
        "table = net.search_pos_embed.detach().numpy()\n"
        "answer = model.weights_name, cfg['mean'], cfg['std'], weight, table"
    )
    answer = online.call("python", code, name=name, cache_dir=tmp_path)
    weights_name, mean, std, weight, table = answer["ok"][0]
    assert weights_name == f"timm:{name}" and mean == std == (0.5, 0.5, 0.5)  # as timm describes them
    assert torch.equal(torch.from_numpy(weight), tensors["blocks.11.mlp.fc2.weight"])
    square = tensors["pos_embed"][:, 1:].mT.unflatten(2, (14, 14))
    expected = torch.nn.functional.interpolate(square, (16, 16), mode="bicubic")
    torch.testing.assert_close(torch.from_numpy(table), expected)
    _, text = online.call("cli", "verify", f"timm:{name}")["ok"]
    assert hashlib.sha256(content).hexdigest() in text
    server.mode = "wrong"
    answer = online.call("python", code, name=name, cache_dir=tmp_path / "again")
    assert "RuntimeError" in answer["error"] and "has another hash than expected" in answer["message"]


def test_unreachable(server: HubServer, clients: dict[str, Client], tmp_path: Path) -> None:
    path = clients["online"].call("fetch", ENTRY, cache_dir=tmp_path)["ok"]
    answer = clients["unreachable"].receive()
    assert "ConnectionError" in answer["error"]
    assert "http://127.0.0.1:1/org/name/resolve/main/model.safetensors" in answer["message"]
    assert "HF_ENDPOINT" in answer["message"] and "pretrained=" in answer["message"]
    assert (
        clients["unreachable"].call("fetch", ENTRY, cache_dir=tmp_path)["ok"] == path
    )  # what is cached, works
