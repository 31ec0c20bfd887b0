"""PyTorch in eager mode: the default CNN with Adam, batch 128, from images that lie whole in memory.

An own loop in the manner of https://github.com/pytorch/examples/tree/main/mnist (BSD-3-Clause), without its DataLoader,
which would take most of the time. `bfloat16` is what PyTorch's performance guide advises for CPUs
(https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html): channels last, autocast, and the fused Adam.
Its compiler is left out, as it works for longer than the whole training lasts.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mnist_dist.benchmarks.peers.scripts.script import Clock, load_mnist, make_parser, run

BATCH_SIZE, EPOCHS, TEST_BATCH_SIZE = 128, 15, 1000


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x_train, y_train, x_test, y_test = load_mnist(args.data)
    train_images, test_images = (to_input(images, device) for images in (x_train, x_test))
    train_labels, test_labels = (torch.from_numpy(labels.astype(np.int64)).to(device) for labels in (y_train, y_test))
    fast = args.precision == "bfloat16"
    layout = torch.channels_last if fast else torch.contiguous_format
    model = build_seed().to(device, memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), fused=fast)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=fast)

    def train_step(indices: torch.Tensor) -> torch.Tensor:
        images = train_images[indices].contiguous(memory_format=layout)
        optimizer.zero_grad()
        with autocast:
            loss = functional.cross_entropy(model(images), train_labels[indices])
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def evaluate() -> float:
        correct = 0
        for images, labels in zip(test_images.split(TEST_BATCH_SIZE), test_labels.split(TEST_BATCH_SIZE), strict=True):
            with autocast:
                logits = model(images.contiguous(memory_format=layout))
            correct += int((logits.argmax(dim=1) == labels).sum())
        return correct / len(test_labels)

    clock = Clock(args.mode)
    enough, epoch = False, 0
    clock.start()
    while not enough and (epoch < EPOCHS or args.mode == "throughput"):
        for indices in torch.randperm(len(train_images), device=device).split(BATCH_SIZE):
            enough = clock.after_step(len(indices), train_step(indices).item)
            if enough:
                break
        epoch += 1
        if args.mode == "accuracy":
            enough = clock.after_evaluation(evaluate())
    name = "GPU" if device.type == "cuda" else "CPU"
    clock.write(args.out, device=name, precision=args.precision, torch=torch.__version__)


def to_input(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Returns float32 [n, 1, 28, 28], from 0 to 1."""
    return torch.from_numpy(images).to(device).float().div(255).unsqueeze(1)


def build_seed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 5 * 5, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


if __name__ == "__main__":
    run(main)
