"""A run as one file that needs none of this code: StableHLO by `jax.export`, weights, mask and normalisation inside.

    python -m bjax.export RUN --out=model.bin [--condition=NAME] [--platforms=cpu,cuda,tpu]

To run it (pip install jax flatbuffers; model.bin.json has the classes, the image size and the preprocessing):

    import jax.export
    call = jax.jit(jax.export.deserialize(open("model.bin", "rb").read()).call)
    probabilities, scores, keep = call(images)  # uint8[b, size, size, 3], any b of at least 1

Out come float32[b, classes], the score of every patch float32[b, rows, columns] (of selector=sigma in pixels, NaN where
it cannot tell), and whether the mask keeps it, bool[b, rows, columns]: what `bjax.predict` says of the same crops, with
the same choices (which weights, no blur, random and bucket masks). The program is of one device and computes each image
by itself. JAX promises to run such a file for six months after the release that wrote it; from 0.11.1 on it refuses
files that are older. Export again then.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from bjax import predictor
from bjax.errors import Parser, UserError, as_command, new_file
from bjax.sums import replace

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(run: predictor.Run, platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")) -> tuple[bytes, dict]:
    """The serialised program of `run`, and what its user must know, as a dict for JSON.

    Raises UserError for an unknown platform and where the package flatbuffers is missing.
    """
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"--platforms={platform}: expected some of {','.join(PLATFORMS)}")
    variables = jax.device_get(run.variables)  # constants of the program, on no device
    if hasattr(run.model, "attention"):  # cuDNN's calls are promised to no later version
        run = dataclasses.replace(run, model=run.model.clone(attention="xla"))

    def program(images):
        outputs, scores, keep = predictor.look(run, images, variables)
        return predictor.probabilities(run, outputs), scores, keep

    shape = jax.export.symbolic_shape(f"b, {run.size}, {run.size}, 3")
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    exported = jax.export.export(jax.jit(program), platforms=platforms)(images)
    try:
        data = bytes(exported.serialize())
    except ImportError:
        raise UserError("the package flatbuffers is missing: pip install flatbuffers") from None
    blurs = run.inputs.mask.measure == "sigma"
    in_pixels = ", the blur's sigma in pixels, NaN where a patch has no texture to tell by" if blurs else ""
    task, preparing, native = run.config.task, run.config.data, not run.scaled
    return data, {
        "run": run.what,
        "task": task,
        "classes": run.classes,
        "input": f"uint8[b, {run.size}, {run.size}, 3], RGB, b >= 1; normalisation is inside",
        "preprocessing": {
            "resize_shorter_side": None if native else preparing.resize,
            "interpolation": None if native else f"{preparing.interpolation}, antialiased",
            "crop": run.size,
            "photographs": "one crop, from the middle"
            if run.scaled
            else "several crops, probabilities averaged over "
            "those that keep a patch: bjax.data.views." + ("detailed" if task == "blur_type" else "tiled"),
        },
        "outputs": {
            name: f"{aval.dtype}[{', '.join(map(str, aval.shape))}]" + (in_pixels if name == "scores" else "")
            for name, aval in zip(("probabilities", "scores", "keep"), exported.out_avals, strict=True)
        },
        "temperature": run.temperature,
        "calibration": "probabilities are of these classes alone: what is none of them gets some all the same; "
        + (
            f"not calibrated: {run.uncalibrated}"
            if run.uncalibrated
            else "calibrated on the run's condition sharp: logits are divided by the temperature, inside"
        ),
        "patch_size": run.patch_size,
        "mask": dataclasses.asdict(run.inputs.mask),
        "platforms": exported.platforms,
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
        "how": "probabilities, scores, keep = jax.export.deserialize(open(FILE, 'rb').read()).call(images)",
    }


@as_command
def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code: 0, or 2 for a user's mistake, told in one line on stderr."""
    parser = Parser("python -m bjax.export", "Write a run as a program that needs none of this code.")
    parser.add_argument("workdir", type=Path, metavar="RUN", help="the run")
    written = "FILE and FILE.json are written"
    parser.add_argument("--out", type=new_file, required=True, metavar="FILE", help=written)
    mask = "with the mask of this evaluation condition of the run (default: none)"
    parser.add_argument("--condition", metavar="NAME", help=mask)
    where = "where it will run (default: %(default)s)"
    parser.add_argument("--platforms", default="cpu,cuda,tpu", metavar="NAMES", help=where)
    args = parser.parse_args(argv)
    data, facts = export(predictor.read(args.workdir, args.condition), tuple(args.platforms.split(",")))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(args.out.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, args.out)
    about = args.out.with_name(args.out.name + ".json")
    replace(about, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"{facts['run']}\n{facts['input']}")
    for name, shape in facts["outputs"].items():
        print(f"  -> {name} {shape}")
    print(f"wrote {args.out} ({len(data) / 1e6:.1f} MB, for {', '.join(facts['platforms'])}) and {about}")


if __name__ == "__main__":
    sys.exit(main())
