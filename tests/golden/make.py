"""Writes models.json.gz: torchvision's logits for small members of every family, for checks without torch.

Run as `python -m golden.make` from tests/. The file holds the logits, and the names and shapes of the state
dict; weights and images come again from seeds (peers.random_tensors, peers.random_images).
"""

import gzip
import itertools
import json
from pathlib import Path

import peers


def main():
    models = peers.torchvision_models()
    from torch import nn

    def vgg():
        layers = models.vgg.make_layers([8, "M", 8, "M", 8, "M", 8, "M", 16, "M"], batch_norm=True)
        model = models.vgg.VGG(layers, num_classes=5)
        sizes = (16 * 7 * 7, 32, 32, 5)
        linear = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
        relu, dropout = nn.ReLU(), nn.Dropout()
        model.classifier = nn.Sequential(linear[0], relu, dropout, linear[1], relu, dropout, linear[2])
        return model

    cases = {
        "resnet50": (
            lambda: models.resnet.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5),
            75,
            1.0,
        ),
        "vgg19_bn": (vgg, 75, 1.25),
        "googlenet": (
            lambda: models.googlenet(num_classes=5, init_weights=False, transform_input=True, aux_logits=True),
            75,
            1.25,
        ),
        "densenet121": (lambda: models.DenseNet(8, (1, 2, 1, 1), 16, num_classes=5), 75, 1.25),
        "vit": (lambda: models.VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=5), 32, 1.0),
    }
    golden = {}
    for name, (build, size, gain) in cases.items():
        model, tensors = peers.with_random_weights(build, gain)
        golden[name] = {
            "image_size": size,
            "gain": gain,
            "shapes": {key: tensor.shape for key, tensor in tensors.items()},
            "logits": peers.run(model, peers.random_images(size)).round(6).tolist(),
        }
    file = Path(__file__).with_name("models.json.gz")
    file.write_bytes(gzip.compress(json.dumps(golden).encode(), mtime=0))
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
