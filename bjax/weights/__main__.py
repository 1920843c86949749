"""`python -m bjax.weights PATH --model=NAME`: does this file fit this model, tensor by tensor?"""

import ast
import sys

import jax
import numpy as np

from bjax import models, weights
from bjax.errors import Parser, UserError, as_command, positive


@as_command
def main(argv: list[str]) -> int | None:
    """Runs the command; returns the exit code: 0, or 2 for a user's mistake, told in one line on stderr."""
    parser = Parser("python -m bjax.weights", __doc__)
    parser.add_argument("path", help=".safetensors, .npz or .pth file")
    parser.add_argument("--model", required=True, metavar="NAME", help=", ".join(models.MODELS))
    classes = "classes of the model; without: those of the file"
    parser.add_argument("--num_classes", type=positive, help=classes)
    size = "image size of the model; without: that of the file"
    parser.add_argument("--image_size", type=positive, help=size)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="as variant=B/16")
    head = "leave the file's head out, start one at zero"
    parser.add_argument("--new_head", action="store_true", help=head)
    args = parser.parse_args(argv)
    like = None
    if args.num_classes or args.image_size or args.option or args.new_head:
        like = _shapes(args)
    variables = weights.load(args.model, args.path, like=like, new_head=args.new_head, note=print)
    for collection, tree in variables.items():
        leaves = jax.tree.leaves(tree)
        print(f"{collection}: {len(leaves)} arrays, {sum(leaf.size for leaf in leaves):,} numbers")
    print(f"{args.model}: every tensor has its place and every variable its tensor")


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
