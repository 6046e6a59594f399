"""Files of proofs: proven again from what is in them, and nothing else; and the command line."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from support import damage
from support.agreement import capture, domain_of
from support.damage import flipped, sides
from support.strategies import ALL, degenerate_networks, domains, ordinary, some_architectures

import cpwl
from bridges.cli import group
from bridges.networks.toys import random_mlp
from cpwl import CertificateError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(name="small")
def _small() -> cpwl.Partition:
    return damage.small()


@pytest.fixture
def proof(small, tmp_path):
    """Return the path of a written proof."""
    cpwl.certify(small, progress=False).save(tmp_path / "proof.json")
    return tmp_path / "proof.json"


def test_a_proof_is_proven_again_from_its_file(small, proof) -> None:
    certificate, again = cpwl.certify(small, progress=False), cpwl.verify(proof, progress=False)
    assert again == replace(certificate, rounding=None, seconds=again.seconds)
    assert cpwl.verify(proof, small.network, progress=False).digest == certificate.digest
    assert proof.stat().st_size < 40 * small.num_cells + 25 * (2 * 8 + 8 * 8 + 8 * 3) + 2000


@ordinary(25)
@given(degenerate_networks(some_architectures(8, units=ALL)), domains(2))
def test_every_kind_of_step_survives_its_file(tmp_path_factory, layers, corners) -> None:
    path = tmp_path_factory.mktemp("proofs") / "proof.json"
    partition = cpwl.subdivide(capture(layers), domain_of(corners), progress=False)
    certificate = cpwl.certify(partition, progress=False)
    certificate.save(path)
    again = cpwl.verify(path, partition.network, progress=False)
    assert again == replace(certificate, rounding=None, seconds=again.seconds)


def test_proofs_of_intervals_and_of_rational_corners_are_files_as_well(tmp_path) -> None:
    line = cpwl.Network.from_torch(random_mlp((1, 6, 2)), (1,))
    plane = cpwl.Network.from_torch(random_mlp((2, 6, 2)), (2,))
    triangle = cpwl.polytope([[-1, 0], [0, -1], [3, 7]], [0, 0, 1])
    for captured, domain, area in (
        (line, cpwl.box([-3], [4]), Fraction(7)),
        (plane, triangle, Fraction(1, 42)),
    ):
        partition = cpwl.subdivide(captured, domain, progress=False)
        certificate = cpwl.certify(partition, progress=False)
        certificate.save(tmp_path / "proof.json")
        again = cpwl.verify(tmp_path / "proof.json", captured, progress=False)
        assert again == replace(certificate, rounding=None, seconds=again.seconds)
        assert again.area == area


def test_a_proof_is_about_its_network(proof) -> None:
    other = cpwl.Network.from_torch(random_mlp((2, 8, 8, 3), seed=1), (2,))
    with pytest.raises(CertificateError, match=r"a proof about this network \(2 inputs, 16 units"):
        cpwl.verify(proof, other, progress=False)
    # the last layer decides no piece, but is part of the network
    module = random_mlp((2, 8, 8, 3))
    with torch.no_grad():
        module[4].weight[0, 0] += 1e-6  # type: ignore[operator]
    with pytest.raises(CertificateError, match="got one about another"):
        cpwl.verify(proof, cpwl.Network.from_torch(module, (2,)), progress=False)


def test_a_proof_is_about_its_domain(small, proof) -> None:
    certificate = cpwl.verify(proof, small.network, domain=damage.BOX, progress=False)
    assert certificate.domain == "[-10, 10] x [-10, 10]"
    assert "of area 400, [-10, 10] x [-10, 10]; " in str(certificate)
    assert "domain='[-10, 10] x [-10, 10]'" in repr(certificate)
    # the same square in other coordinates of the same plane
    turned = cpwl.Slice([2.0, 0.0], [[0.0, -4.0], [0.5, 0.0]])
    square = turned.polygon([[-2.5, -24], [2.5, -24], [2.5, 16], [-2.5, 16]])
    assert cpwl.verify(proof, domain=square, progress=False).cells == certificate.cells
    smallest = np.nextafter(10.0, 11.0)
    tilted = cpwl.Slice([0.0, 0.0], [[1.0, 0.0], [2.0**-60, 1.0]])
    for other in (
        cpwl.box([100, 100], [120, 120]),
        cpwl.box([-10, -10], [10, smallest]),
        tilted.box([-10, -10], [10, 10]),
        cpwl.Slice([7.0, 7.0], 1e-9 * np.eye(2)).box([-10, -10], [10, 10]),
        cpwl.polygon([[-10, -10], [10, -10], [10, 10], [0, 11], [-10, 10]]),
        cpwl.Slice([0.0] * 3, np.eye(2, 3)).box([-10, -10], [10, 10]),
        cpwl.box([-10], [10]),
    ):
        with pytest.raises(
            CertificateError, match=r"a proof about .*, got one about \[-10, 10\] x"
        ):
            cpwl.verify(proof, domain=other, progress=False)
    with pytest.raises(ValueError, match="one or two dimensions"):
        cpwl.verify(proof, domain=cpwl.box([0] * 3, [1] * 3), progress=False)


def test_slices_are_printed_with_their_place(tmp_path) -> None:
    network = cpwl.Network.from_torch(random_mlp((3, 4, 2)), (3,))
    plane = cpwl.Slice([1.0, 0.0, 0.5], [[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    domain = plane.polygon([[0, 0], [1, 0], [0, 1]])
    certificate = cpwl.certify(cpwl.subdivide(network, domain, progress=False), progress=False)
    assert certificate.domain == (
        "the polygon (0, 0), (1, 0), (0, 1) of the slice through (1, 0, 0.5) along (0, 1, 0), "
        "(0, 0, 2)"
    )


def test_breakpoints_beyond_float64_are_a_certificate_error(tmp_path) -> None:
    class Wave(torch.nn.Module):
        def forward(self, x):
            return torch.remainder(x + 0.5, 2.0).sub(1.0).abs()

    network = cpwl.Network.from_torch(Wave(), (1,))
    partition = cpwl.subdivide(network, cpwl.box([-3], [4]), progress=False)
    cpwl.certify(partition, progress=False).save(tmp_path / "p.json")

    def huge(content: dict) -> None:
        content["network"]["steps"][0]["period"] = "0x1p1023"
        content["patterns"]["lowest"] = [2**20]

    change(tmp_path / "p.json", huge)
    with pytest.raises(CertificateError, match="expected corners in the domain, got the corner"):
        cpwl.verify(tmp_path / "p.json", progress=False)


def test_areas_that_are_long_or_beyond_float64_are_named(proof) -> None:
    def far(content: dict) -> None:
        for corner in content["domain"]["corners"]:
            corner[:] = [f"{x.partition('/')[0]}{'0' * 300}/1" for x in corner]
        content["claims"]["area"] = f"{'1' * 4000}/{'7' * 4000}"

    change(proof, far)
    with pytest.raises(CertificateError) as failed:
        cpwl.verify(proof, progress=False)
    assert len(str(failed.value)) < 400


def change(path, alter) -> None:
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content))


def swap_sides(content: dict) -> None:
    listed = content["sides"]["conditions"]
    listed[0], listed[1] = listed[1], listed[0]


WRONG = {
    "a weight": lambda c: c["network"]["steps"][0]["parts"][0]["values"].__setitem__(3, "0x1p-2"),
    "the area": lambda c: c["claims"].update(area="191/1"),
    "the number of cells": lambda c: c["claims"].update(cells=7),
    "the digest": lambda c: c["claims"].update(digest="0" * 64),
    "the tail": lambda c: c["network"].update(tail="0" * 64),
    "the domain": lambda c: c["domain"]["corners"][2].__setitem__(0, "b/1"),
    "the slice": lambda c: c["domain"]["basis"][0].__setitem__(0, "0x1.1p+0"),
    "the sides": swap_sides,
    "a side": lambda c: c["sides"]["conditions"].__setitem__(0, 10**6),
    "a piece": lambda c: c["patterns"]["lowest"].__setitem__(2, 1),
    "a breakpoint": lambda c: c["network"]["steps"][1]["points"][0].__setitem__(0, "0x1p-3"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_changed_proof_does_not_hold(proof, what) -> None:
    change(proof, WRONG[what])
    with pytest.raises(CertificateError, match="xpected "):
        cpwl.verify(proof, progress=False)


def test_a_proof_with_a_cell_less_names_the_cell_beside_the_hole(small, tmp_path) -> None:
    certificate = cpwl.certify(small, progress=False)
    held = certificate._proof
    less = held._replace(pieces=held.pieces[1:], sides=held.sides[1:])
    replace(certificate, _proof=less, cells=certificate.cells - 1).save(tmp_path / "p.json")
    with pytest.raises(CertificateError, match="no cell beside its side") as failed:
        cpwl.verify(tmp_path / "p.json", progress=False)
    beside = set(small.facet_cells[sides(small, 0)].ravel().tolist())
    assert failed.value.cell is not None
    assert failed.value.cell + 1 in beside
    assert "is missing" in str(failed.value)


def test_a_proof_with_a_cell_twice_names_it(small, tmp_path) -> None:
    certificate = cpwl.certify(small, progress=False)
    held = certificate._proof
    pieces = np.concatenate([held.pieces, held.pieces[7:8]])
    more = held._replace(pieces=pieces, sides=(*held.sides, held.sides[7]))
    replace(certificate, _proof=more, cells=certificate.cells + 1).save(tmp_path / "p.json")
    with pytest.raises(CertificateError, match="a pattern of its own, got that of cell 7 again"):
        cpwl.verify(tmp_path / "p.json", progress=False)


BROKEN = {
    "format": (lambda c: c.update(format="cpwl proof 9"), "format 'cpwl proof 9'"),
    "no steps": (lambda c: c["network"].pop("steps"), "steps"),
    "kind": (lambda c: c["network"]["steps"][0].update(kind="eval"), "a step of kind 'eval'"),
    "source": (lambda c: c["network"]["steps"][0]["parts"][0].update(source=7), "step 0 reads"),
    "columns": (lambda c: c["network"]["steps"][0]["parts"][0]["columns"].__setitem__(0, 99),
                "entries outside it"),
    "infinite": (lambda c: c["network"]["steps"][0]["offset"].__setitem__(0, "inf"),
                 "offset that is not finite"),
    "units": (lambda c: c["network"].update(units=17), "17 units in a file that does not list"),
    "bits": (lambda c: c["patterns"]["bits"].__setitem__(0, 60), "patterns that are not of 16"),
    "wide": (lambda c: c["patterns"]["lowest"].__setitem__(0, 2**31 - 1), "are not of 16 units"),
    "packed": (lambda c: c["patterns"].update(packed="AAAA"), "3 bytes of patterns"),
    "base64": (lambda c: c["patterns"].update(packed="?"), "base64"),
    "counts": (lambda c: c["sides"]["counts"].__setitem__(0, -3), "'-3' where a whole number"),
    "more counts": (lambda c: c["sides"]["counts"].append(4), "do not fit their counts"),
    "huge count": (lambda c: c["sides"]["counts"].__setitem__(0, 2**61), "do not fit"),
    "ratio": (lambda c: c["domain"]["corners"][0].__setitem__(0, "1/0"), "where a ratio"),
    "long ratio": (lambda c: c["domain"]["corners"][0].__setitem__(0, "1" * 5000 + "/1"),
                   "where a ratio is needed"),
    "not convex": (lambda c: c["domain"]["corners"].reverse(), "no convex domain"),
    "latent": (lambda c: c["domain"]["origin"].append("0x0p+0"), "2 inputs in a file"),
    "name": (lambda c: c["network"]["names"].__setitem__(0, 3), "names that are no text"),
    "escape": (lambda c: c["network"]["names"].__setitem__(0, "\x1b[2J"), "that can be printed"),
    "more units": (lambda c: c["network"].update(units=3 * 10**8), "300000000 units in a file"),
    "long units": (lambda c: c["network"].update(units=10**18), "units in a file that does not"),
    "inputs": (lambda c: c["network"].update(inputs=10**9), "1000000000 inputs in a file"),
    "many waves": (
        lambda c: c["network"]["steps"].extend(
            {"kind": "wave", "source": 1, "first_unit": 0, "size": 8,
             **dict.fromkeys(("period", "phase", "scale", "offset"), "0x1p0")}
            for _ in range(9)
        ),
        "its steps have 24 units, not 0 to 15",
    ),
    "a zero basis": (lambda c: c["domain"]["basis"].__setitem__(0, ["0x0p+0", "0x0p+0"]),
                     "axes are not independent"),
    "a flat basis": (
        lambda c: c["domain"].update(basis=[["0x1p0", "0x1p-60"], ["0x1p-60", "0x1p-120"]]),
        "axes are not independent",
    ),
    "no corners": (lambda c: c["domain"].update(corners=[]), "no convex domain"),
    "a digest": (lambda c: c["claims"].update(digest="\x1b[2J"), "a digest that is none"),
    "many patterns": (
        lambda c: c.update(
            sides={"counts": [0] * 200_000, "conditions": []},
            patterns={"lowest": [0] * 16, "bits": [0] * 16, "packed": ""},
            network=dict(c["network"], names=["x" * 7]),
        ),
        "names differ in number",
    ),
    "list": (lambda c: c.update(network=[1, 2]), "list indices"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_proof_is_said_to_be_one(proof, what) -> None:
    alter, text = BROKEN[what]
    change(proof, alter)
    with pytest.raises(ValueError, match=r"Expected a proof \(cpwl proof 1\) in ") as failed:
        cpwl.verify(proof, progress=False)
    assert not isinstance(failed.value, CertificateError)
    assert text in str(failed.value)


TWICE = '{"format": "cpwl proof 1", "format": "cpwl proof 1"}'


@pytest.mark.parametrize(
    "content",
    [TWICE, "", "{", "[]", "NaN", "[" * 100_000, '{"format": NaN}', "\x00", "1" * 5000, "é"],
)
def test_what_is_no_proof_is_said_to_be_none(tmp_path, content) -> None:
    path = tmp_path / "proof.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected a proof \(cpwl proof 1\)"):
        cpwl.verify(path, progress=False)
    with pytest.raises(FileNotFoundError, match="got no file at"):
        cpwl.verify(tmp_path / "none.json", progress=False)


def test_a_file_of_another_kind_is_no_proof_in_plain_words(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\xff")
    with pytest.raises(ValueError, match="bytes that are no text"):
        cpwl.verify(path, progress=False)


def test_a_long_area_is_a_decimal_in_text() -> None:
    network = cpwl.Network.from_torch(torch.nn.LeakyReLU(0.5), (2,))
    for high, said in ((0.1, "area about 0.01, "), (0.5, "area 1/4, ")):
        partition = cpwl.subdivide(network, cpwl.box([0, 0], [high, high]), progress=False)
        certificate = cpwl.certify(partition, progress=False)
        assert said in str(certificate)
        assert certificate.area == Fraction(high) ** 2


def test_no_change_of_a_byte_passes_unless_it_changes_nothing(proof) -> None:
    original = cpwl.verify(proof, progress=False)
    text, choose = proof.read_text(), random.Random(5)
    refused = 0
    for _ in range(150):
        place = choose.randrange(len(text))
        letter = choose.choice('0123456789abcdefx.p-+",:[]{}AZ')
        proof.write_text(text[:place] + letter + text[place + 1 :])
        try:
            again = cpwl.verify(proof, progress=False)
        except ValueError:
            refused += 1
        else:  # another letter of a name, or "001.8p+0" for "0x1.8p+0"
            assert (again.digest, again.cells) == (original.digest, original.cells)
    assert refused > 130


# --- the command line


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command beside a model: status, stdout, stderr."""
    batch = {0: torch.export.Dim("batch")}
    for seed in (0, 1):
        module = random_mlp((2, 8, 8, 3), seed).eval()
        exported = torch.export.export(module, (torch.zeros(2, 2),), dynamic_shapes=(batch,))
        torch.export.save(exported, tmp_path / f"model{seed}.pt2")
    monkeypatch.chdir(tmp_path)

    def command(line):
        with pytest.raises(SystemExit) as stopped:
            group.main(line.split())
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return command


def test_the_command_line_certifies_and_verifies(run, small, tmp_path) -> None:
    status, out, err = run("partition model0.pt2 --box -10 10 --certify -o p.npz -o p.json")
    assert (status, err) == (0, "")
    assert f"proven: {small.num_cells} cells with {len(small.points)} corners tile" in out
    assert "wrote p.npz\nwrote p.json\n" in out
    # the file and the module that it was exported from are one network
    digest = cpwl.certify(small, progress=False).digest
    assert cpwl.verify(tmp_path / "p.json", small.network, progress=False).digest == digest

    for line in ("verify p.json", "verify p.json model0.pt2"):
        status, out, err = run(line)
        assert (status, err) == (0, "")
        assert out.startswith(f"proven: {small.num_cells} cells with ")
        assert out.endswith(f"{digest[:16]}\n")
    status, out, err = run("verify p.json model0.pt2 --box -10 10")
    assert (status, err) == (0, "")
    status, out, err = run("verify p.json model0.pt2 --box -10 9")
    assert (status, out) == (1, "")
    assert err.startswith("cpwl: Expected a proof about [-10, 9] x [-10, 9], got one about [-10, 1")
    status, out, err = run("verify p.json --box -10 10")
    assert (status, out) == (2, "")
    assert err.startswith("cpwl: Expected MODEL with --box, --through, --origin or --basis, got")
    status, out, err = run("verify p.json model1.pt2")
    assert (status, out) == (1, "")
    assert err.startswith("cpwl: Expected a proof about this network (2 inputs, 16 units")
    assert err.count("\n") == 1


def test_the_command_line_certifies_without_writing(run, tmp_path) -> None:
    before = sorted(tmp_path.iterdir())
    status, out, _ = run("partition model0.pt2 --box -10 10 --certify")
    assert status == 0
    assert "proven: " in out
    assert sorted(tmp_path.iterdir()) == before


def test_a_partition_that_is_not_proven_is_not_written(run, monkeypatch, tmp_path) -> None:
    subdivide = cpwl.subdivide

    def wrong(*arguments, **options):
        partition = subdivide(*arguments, **options)
        return flipped(partition, 3, 0)

    monkeypatch.setattr(cpwl, "subdivide", wrong)
    status, _, err = run("partition model0.pt2 --box -10 10 --certify -o p.npz -o p.json")
    assert status == 1
    assert err.startswith("cpwl: cell 3: expected ")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("p.*"))


def test_a_file_that_is_no_proof_is_a_user_error(run, tmp_path) -> None:
    (tmp_path / "p.json").write_text("{}")
    status, _, err = run("verify p.json")
    assert status == 2
    assert err.startswith("cpwl: Expected a proof (cpwl proof 1) in p.json, got a file that does")
    status, _, err = run("verify none.json")
    assert (status, "got no file at none.json" in err) == (2, True)
    status, _, err = run("partition model0.pt2 --box -10 10")
    assert (status, "Missing option '-o' / '--output', or '--certify'." in err) == (2, True)


def test_what_cannot_be_proven_is_refused_before_the_work(run, monkeypatch, tmp_path) -> None:
    module = random_mlp((3, 4, 2))
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(module, (torch.zeros(2, 3),), dynamic_shapes=(batch,))
    torch.export.save(exported, tmp_path / "solid.pt2")
    monkeypatch.delattr(cpwl, "subdivide")
    for line in (
        "partition solid.pt2 --box 0 1 --certify",
        "partition solid.pt2 --box 0 1 -o p.json",
    ):
        status, _, err = run(line)
        assert (status, "to certify, got 3. Leave out --certify" in err) == (2, True)
