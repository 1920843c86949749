"""Published weights by name, and whether a file of weights fits a model, tensor by tensor.

python -m bjax.weights                          lists the names
python -m bjax.weights torchvision:resnet50     downloads these, verifies and checks them
python -m bjax.weights FILE --model=resnet50    checks a file
"""

import argparse
import ast
import sys

import jax
import numpy as np

from bjax import models, weights
from bjax.errors import Parser, UserError, as_command, positive
from bjax.published import HOSTS, PUBLISHED, Published, find
from bjax.runtime.console import columns
from bjax.weights import cache

LEGEND = """\
--config.init_from=torchvision:resnet50 takes such weights: a zoo, a colon, a
name. 10^6: millions of parameters. top-1, top-5: on ImageNet's validation
images, as published, of those that paper 1 compares with. licence: as timm
names it; SWAG: github.com/facebookresearch/SWAG; torchvision names no other.
here: in {}"""


@as_command
def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code: 0, or 2 for a user's mistake, told in one line on stderr."""
    parser = Parser("python -m bjax.weights", __doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "path", nargs="?", help="a name, or a .safetensors, .npz or .pth file; without: lists the names"
    )
    parser.add_argument("--model", metavar="NAME", help=f"{', '.join(models.MODELS)};\nneeded for a file")
    classes = "classes of the model; without: those of the file"
    parser.add_argument("--num_classes", type=positive, help=classes)
    size = "image size of the model; without: that of the file"
    parser.add_argument("--image_size", type=positive, help=size)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="as variant=B/16")
    head = "leave the file's head out, start one at zero"
    parser.add_argument("--new_head", action="store_true", help=head)
    args = parser.parse_args(argv)
    if args.path is None:
        return _list([w for w in PUBLISHED.values() if args.model in (None, w.model)], args.model)
    given = find(args.path)
    if not args.model and not given:
        parser.error("--model: missing; a file does not tell whose weights it has")
    args.model = args.model or given.model
    like = None
    if args.num_classes or args.image_size or args.option or args.new_head:
        like = _shapes(args)
    variables = weights.load(args.model, args.path, like=like, new_head=args.new_head, note=print)
    for collection, tree in variables.items():
        leaves = jax.tree.leaves(tree)
        print(f"{collection}: {len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} numbers")
    print(f"{args.model}: every tensor has its place and every variable its tensor")


def _list(chosen: list[Published], model: str | None) -> None:
    if not chosen:
        raise UserError(f"--model={model}: no published weights; there are those of {_models()}")
    for zoo in HOSTS:
        rows = [_row(w) for w in chosen if w.zoo == zoo]
        if rows:
            header = (f"{zoo}:", "model", "10^6", "licence", "top-1 %", "top-5 %", "here")
            filled = [i for i in range(len(header)) if i < 2 or any(row[i] for row in rows) or header[i] == "here"]
            header, *rows = ([row[i] for i in filled] for row in (header, *rows))
            print(columns(header, rows, left=2), end="\n\n")
    print(LEGEND.format(cache.folder()))


def _models() -> str:
    return ", ".join(dict.fromkeys(w.model for w in PUBLISHED.values()))


def _row(w: Published) -> tuple[str, ...]:
    accuracies = ("" if share is None else f"{share:.3f}" for share in (w.top1, w.top5))
    here = "yes" if cache.place(w).is_file() else ""
    return w.short, f"{w.model} {w.variant}".strip(), f"{w.parameters / 1e6:.1f}", w.licence, *accuracies, here


def _shapes(args):
    options = {}
    for option in args.option:
        key, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--option={option}: expected KEY=VALUE, as in --option variant=B/16")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    size = args.image_size or 224
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    try:
        model = models.build(args.model, num_classes=args.num_classes or 1000, **options)
        return jax.eval_shape(model.init, jax.random.key(0), images)
    except UserError:
        raise
    except (ValueError, TypeError) as error:  # what a constructor, Flax or JAX says of an option's value
        reason = str(error).split("\n")[0]
        raise UserError(f"--image_size, --option: there is no such {args.model} ({reason})") from None


if __name__ == "__main__":
    sys.exit(main())
