"""PyTorch in eager mode, from images that lie whole in memory: the default CNN, or the published fast-MNIST recipe.

The default CNN, with Adam and batch 128, has an own loop in the manner of
https://github.com/pytorch/examples/tree/main/mnist (BSD-3-Clause), without its DataLoader, which would take most of
the time.

The recipe reaches 99 % in one epoch, 0.76 s on its author's GPU. It is written anew from the description of the last
step of https://github.com/tuomaso/train_mnist_fast (Tuomas Oikarinen, MIT): normalised images resident on the device
and shuffled once beforehand, a CNN of 24 5x5 and 32 3x3 filters with 256 hidden units that pools before its ReLU, batch
256, Adam with betas 0.7 and 0.9, one cycle of the learning rate up to 0.01 without momentum cycling, one epoch, one
test. Where throughput is measured, the cycle is as long as a thousand epochs.

`bfloat16` is what PyTorch's performance guide advises for CPUs
(https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html): channels last, autocast, and, except in the
recipe, the fused Adam. PyTorch's compiler is left out, as it works for longer than the whole training lasts.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mnist_dist.benchmarks.peers.scripts.script import Clock, load_mnist, make_parser, run

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]  # Images float32 [b, 1, 28, 28] with labels int64 [b].
MEASURED_EPOCHS = 1000  # More than a measurement of throughput takes.


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--recipe", choices=("seed", "fast-mnist"), default="seed")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    in_bfloat16, is_seed = args.precision == "bfloat16", args.recipe == "seed"
    layout = torch.channels_last if in_bfloat16 else torch.contiguous_format
    x_train, y_train, x_test, y_test = load_mnist(args.data)
    mean, std = (0.0, 1.0) if is_seed else (0.1307, 0.3081)
    train_images, test_images = (
        torch.from_numpy(images).to(device).float().div(255).sub(mean).div(std).unsqueeze(1)
        for images in (x_train, x_test)
    )
    train_labels, test_labels = (torch.from_numpy(labels.astype(np.int64)).to(device) for labels in (y_train, y_test))

    model = (build_seed() if is_seed else build_fast_mnist()).to(device, memory_format=layout)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16)
    batch_size, test_batch_size, epochs = (128, 1000, 15) if is_seed else (256, 2000, 1)
    if args.mode == "throughput":
        epochs = MEASURED_EPOCHS
    schedule = None
    if is_seed:
        optimizer = torch.optim.Adam(model.parameters(), fused=in_bfloat16)

        def epoch() -> Batches:
            for indices in torch.randperm(len(train_images), device=device).split(batch_size):
                yield train_images[indices].contiguous(memory_format=layout), train_labels[indices]
    else:
        order = torch.from_numpy(np.random.default_rng(args.seed).permutation(len(train_images))).to(device)
        images = train_images[order].contiguous(memory_format=layout)
        batches = list(zip(images.split(batch_size), train_labels[order].split(batch_size), strict=True))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.01, total_steps=epochs * len(batches), cycle_momentum=False
        )

        def epoch() -> Batches:
            return batches

    def train_step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with autocast:
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        return loss

    @torch.no_grad()
    def evaluate() -> float:
        correct = 0
        for images, labels in zip(test_images.split(test_batch_size), test_labels.split(test_batch_size), strict=True):
            with autocast:
                logits = model(images.contiguous(memory_format=layout))
            correct += int((logits.argmax(dim=1) == labels).sum())
        return correct / len(test_labels)

    clock = Clock(args.mode)
    clock.start()
    for _ in range(epochs):
        enough = any(clock.after_step(len(images), train_step(images, labels).item) for images, labels in epoch())
        if args.mode == "accuracy":
            enough = clock.after_evaluation(evaluate())
        if enough:
            break
    name = "GPU" if device.type == "cuda" else "CPU"
    clock.write(args.out, device=name, precision=args.precision, torch=torch.__version__)


def build_seed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 5 * 5, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def build_fast_mnist() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(32 * 5 * 5, 256), nn.ReLU(), nn.Linear(256, 10)),
    )


if __name__ == "__main__":
    run(main)
