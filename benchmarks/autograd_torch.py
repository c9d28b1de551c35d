"""The same steps by PyTorch on the CPU, written as its users write them: the yardstick of `training_steps.py`.

Variants: "nchw", PyTorch's own layout, or "nhwc", its channels-last one; slices by ``grid_sample``, or with "gather" by
the eight corners of each point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from autograd_problem import Problem


def versions() -> dict[str, str]:
    return {"torch": torch.__version__}


def _images(x: Any, nhwc: bool) -> Any:
    x = torch.as_tensor(x).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


class _Model:
    """Parameters as tensors in PyTorch's layout; ``gradients`` puts them back into ours."""

    def __init__(self, p: Problem, variant: str = "nchw") -> None:
        self.p = p
        self.nhwc, self.gather = "nhwc" in variant, "gather" in variant
        self.tensors: dict[str, Any] = {}
        for name, item in p.parameters.items():
            if not isinstance(item, dict):
                self._add(name, item)
            elif item["w"].ndim == 4:
                self._add(f"{name}/w", item["w"].transpose(3, 2, 0, 1))
                self._add(f"{name}/b", item["b"])
            else:
                self._add(f"{name}/w", item["w"].T)
                self._add(f"{name}/b", item["b"])
        self.data = {
            name: _images(a, self.nhwc) if a.ndim == 4 else torch.as_tensor(a) for name, a in p.data.items()
        }
        n = p.size
        axis = torch.cat([torch.arange((n + 1) // 2), torch.arange(-(n // 2), 0)])
        ky, kx = torch.meshgrid(axis, torch.arange(n // 2 + 1), indexing="ij")
        self.plane = torch.stack([kx, ky]).to(torch.as_tensor(next(iter(p.data.values()))).real.dtype)
        self.inside = (self.plane**2).sum(0) < (n // 2) ** 2

    def _add(self, name: str, a: Any) -> None:
        t = torch.as_tensor(np.ascontiguousarray(a))
        if t.ndim == 4 and self.nhwc:
            t = t.contiguous(memory_format=torch.channels_last)
        self.tensors[name] = t.clone().requires_grad_()

    def conv(self, x: Any, name: str) -> Any:
        return F.conv2d(x, self.tensors[f"{name}/w"], self.tensors[f"{name}/b"], padding=1)

    def dense(self, x: Any, name: str) -> Any:
        return F.linear(x, self.tensors[f"{name}/w"], self.tensors[f"{name}/b"])

    def loss(self) -> Any:
        return {"wgan": self._wgan, "posenet": self._posenet}[self.p.kind]()

    def _critic(self, x: Any) -> Any:
        for name in self.p.parameters:
            if name.startswith("conv"):
                x = F.leaky_relu(F.max_pool2d(self.conv(x, name), 2), self.p.slope)
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        return self.dense(F.leaky_relu(self.dense(x, "dense0"), self.p.slope), "dense1")

    def _wgan(self) -> Any:
        d = self.data
        scores = self._critic(torch.cat([d["fake"], d["real"]]))
        between = d["between"].detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._critic(between).sum(), between, create_graph=True)
        lengths = ((slope**2).sum((1, 2, 3)) + 1e-12).sqrt()
        batch = len(between)
        return scores[:batch].sum() - scores[batch:].sum() + self.p.penalty * ((lengths - 1) ** 2).sum()

    def _posenet(self) -> Any:
        x = self.data["images"]
        for k in range(sum(name.endswith("a") for name in self.p.parameters)):
            x = F.max_pool2d(F.relu(self.conv(F.relu(self.conv(x, f"conv{k}a")), f"conv{k}b")), 2)
        x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        x = self.dense(F.relu(self.dense(F.relu(self.dense(x, "dense0")), "dense1")), "dense2")
        a = F.normalize(x[:, :3], dim=1)
        b = F.normalize(x[:, 3:] - (a * x[:, 3:]).sum(1, keepdim=True) * a, dim=1)
        turns = torch.stack([a, b, torch.linalg.cross(a, b)], 1)
        spectrum = torch.fft.rfftn(torch.fft.ifftshift(self.tensors["volume"]))
        slices = self.slices(spectrum, turns) * self.data["ctf"]
        n = self.p.size
        views = torch.fft.fftshift(torch.fft.irfft2(slices, s=(n, n)), dim=(1, 2))
        return ((views - self.data["images"][:, 0]) ** 2).mean()

    def slices(self, spectrum: Any, turns: Any) -> Any:
        """Trilinear central slices through a half spectrum."""
        q = torch.einsum("iyx,bij->byxj", self.plane, turns[:, :2])
        mirrored = q[..., 0] < 0
        q = torch.where(mirrored[..., None], -q, q)
        out = self._gathered(spectrum, q) if self.gather else self._sampled(spectrum, q)
        out = torch.where(mirrored, out.conj(), out)
        return out * self.inside

    def _sampled(self, spectrum: Any, q: Any) -> Any:
        # frequencies -n/2 .. n/2 side by side: the first plane of an even size comes again as the last
        n = self.p.size
        whole = torch.fft.fftshift(spectrum, dim=(0, 1))
        whole = torch.cat([whole, whole[:1]], 0)
        whole = torch.cat([whole, whole[:, :1]], 1)
        half = n // 2
        place = torch.stack([q[..., 0] / (half / 2) - 1, q[..., 1] / half, q[..., 2] / half], -1)
        parts = torch.view_as_real(whole).permute(3, 0, 1, 2)[None]
        out = F.grid_sample(parts, place[None], mode="bilinear", padding_mode="border", align_corners=True)
        return torch.complex(out[0, 0], out[0, 1])

    def _gathered(self, spectrum: Any, q: Any) -> Any:
        n = self.p.size
        q = torch.where(self.inside[..., None], q, torch.zeros_like(q))
        low = q.detach().floor()
        f = q - low
        low = low.long()
        flat = spectrum.reshape(-1)
        out = 0
        for corner in range(8):
            cx, cy, cz = corner & 1, corner >> 1 & 1, corner >> 2
            weight = (
                (f[..., 0] if cx else 1 - f[..., 0])
                * (f[..., 1] if cy else 1 - f[..., 1])
                * (f[..., 2] if cz else 1 - f[..., 2])
            )
            y, z = (low[..., 1] + cy) % n, (low[..., 2] + cz) % n
            out = out + weight * flat[(z * n + y) * (n // 2 + 1) + low[..., 0] + cx]
        return out

    def gradients(self) -> dict[str, Any]:
        """Of what `backward` has left, nested and laid out like the parameters of the problem."""
        out: dict[str, Any] = {}
        for name, item in self.p.parameters.items():
            if not isinstance(item, dict):
                out[name] = self.tensors[name].grad.numpy()
                continue
            w = self.tensors[f"{name}/w"].grad.numpy()
            w = w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T
            out[name] = {"w": w, "b": self.tensors[f"{name}/b"].grad.numpy()}
        return out


def value_and_gradients(p: Problem, variant: str = "nchw") -> tuple[float, dict[str, Any]]:
    model = _Model(p, variant)
    if p.kind == "slices":
        turns = model.data["turns"].clone().requires_grad_()
        out = model.slices(model.tensors["spectrum"], turns)
        out.backward(model.data["g"])
        value = float(out[0, 1, 1].detach().abs())
        return value, {"spectrum": model.tensors["spectrum"].grad.numpy(), "turns": turns.grad.numpy()}
    loss = model.loss()
    loss.backward()
    return float(loss.detach()), model.gradients()


def step(p: Problem, variant: str = "nchw") -> Callable[[], Any]:
    model = _Model(p, variant)
    if p.kind == "slices":
        turns = model.data["turns"].clone().requires_grad_()

        def call() -> Any:
            model.tensors["spectrum"].grad = turns.grad = None
            out = model.slices(model.tensors["spectrum"], turns)
            out.backward(model.data["g"])

        return call
    adam = torch.optim.Adam(list(model.tensors.values()), lr=p.rate, fused=True)

    def train() -> float:
        adam.zero_grad(set_to_none=True)
        loss = model.loss()
        loss.backward()
        adam.step()
        return float(loss.detach())

    return train
