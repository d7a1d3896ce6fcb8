"""Test accuracy on scikit-learn's digits against noise_std for three networks, one seed: about 30 seconds of one core.

What too little and too much noise look like, for docs/which_noise.md. The site draws it.
"""

import warnings

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import torch_ssam

LEVELS = (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4)
torch.set_num_threads(1)
warnings.filterwarnings("ignore", message="noise_std=")  # too much noise is what is shown
images, labels = load_digits(return_X_y=True)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
x = (torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16)[order]
y = torch.tensor(labels)[order]
train, test = slice(1200), slice(1200, None)
loss_fn = nn.CrossEntropyLoss()


class Transformer(nn.Module):
    """The rows of an image as eight tokens."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        self.block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.block(self.embed(x[:, 0]) + self.place).mean(1))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def cnn():
    first = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    second = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(256, 10))


def sgd(model, noise_std):
    return torch_ssam.SSAM(model.parameters(), lr=0.1, noise_std=noise_std, momentum=0.9)


def adamw(model, noise_std):
    return torch_ssam.wrap(torch.optim.AdamW(model.parameters(), lr=3e-3), noise_std=noise_std)


def accuracy(make_model, make_optimizer, noise_std, epochs=15):
    torch.manual_seed(0)
    model = make_model()
    opt = make_optimizer(model, noise_std)
    batches = torch.Generator().manual_seed(1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs * 24)
    for _ in range(epochs):
        for i in torch.randperm(1200, generator=batches).split(50):
            opt.zero_grad()
            with opt.perturb():
                loss_fn(model(x[i]), y[i]).backward()
            opt.step()
            schedule.step()
    torch_ssam.update_bn(x[train].split(100), model)
    model.eval()
    with torch.no_grad():
        return 100 * (model(x[test]).argmax(1) == y[test]).float().mean().item()


figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for color, title, make_model, make_optimizer in (
    ("C0", "MLP, SGD", mlp, sgd),
    ("C1", "CNN with BatchNorm, SGD", cnn, sgd),
    ("C2", "transformer, AdamW", Transformer, adamw),
):
    scores = [accuracy(make_model, make_optimizer, level) for level in (0.0, *LEVELS)]
    axis.axhline(scores[0], color=color, linestyle=":", linewidth=1)
    axis.plot(LEVELS, scores[1:], "o-", color=color, markersize=4, label=title)
axis.set(xscale="log", xlabel="noise_std, isotropic", ylabel="test accuracy, %", ylim=(0, 101))
axis.grid(alpha=0.3)
axis.legend(frameon=False, loc="lower left")
