"""An accelerator that is not there: tensors that say they are on it must not meet those of the CPU."""

import re

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

CPU, THERE = torch.device("cpu"), torch.device("cuda", 0)


class Pretended(TorchFunctionMode):
    """Tensors say that they are on an accelerator when they were made there or moved there; all numbers stay on the CPU.

    Raises RuntimeError where an operation meets tensors of both devices, as a real accelerator does. A number (no
    dimension) from the CPU is welcome everywhere, and a tensor may be indexed by one from the CPU. The same for a generator
    of another device, and TypeError for numpy's view of a tensor that is there.
    """

    MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.copy_, torch.Tensor.type}
    INDEX = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
    VIEWS = {torch.Tensor.numpy, torch.Tensor.__array__}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        if getattr(function, "__self__", None) is torch.Tensor.device and function.__name__ == "__get__":
            return where(args[0])
        if function in self.VIEWS and where(args[0]) == THERE:
            raise TypeError("numpy cannot see a tensor that is on another device than the CPU")
        tensors = list(flatten(args[:1] if function is torch.Tensor.__deepcopy__ else (args, kwargs)))
        target = next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, (torch.device, str)) and is_device(x)), None)
        if function in self.MOVES:
            place = torch.device(target) if target else where(tensors[-1] if function is torch.Tensor.to else args[0])
            if function is torch.Tensor.cpu:
                place = CPU
        else:
            big = tensors[:1] if function in self.INDEX and where(args[0]) == THERE else [x for x in tensors if x.ndim]
            if len({where(x) for x in big}) > 1:
                raise RuntimeError(f"{function.__name__} meets tensors of two devices")
            place = torch.device(target) if target else THERE if any(where(x) == THERE for x in tensors) else CPU
        dice = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)), None)
        if dice is not None and getattr(dice, "place", CPU).type != place.type:
            raise RuntimeError(f"{function.__name__} draws on {place} from a generator of another device")
        stay = lambda x: CPU if isinstance(x, (torch.device, str)) and is_device(x) else x
        out = function(*map(stay, args), **{name: stay(x) for name, x in kwargs.items()})
        for x in flatten(out):
            if function in self.MOVES and function is not torch.Tensor.copy_ and x is args[0] and where(x) != place:
                out = x = x.view_as(x)  # another tensor: the one that was moved stays where it is
            x.place = place
        return out


class Generator(torch.Generator):
    """A generator that may say that it is on the accelerator."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.place = torch.device(device)
        return generator


def is_device(x):
    return isinstance(x, torch.device) or bool(re.fullmatch(r"(cpu|cuda)(:\d+)?", x))


def where(x):
    place = getattr(x, "place", CPU)
    return THERE if place.type == "cuda" else CPU


def flatten(x):
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, (list, tuple)):
        for y in x:
            yield from flatten(y)
    elif isinstance(x, dict):
        yield from flatten(list(x.values()))


def there(module):
    """The module, on the pretended accelerator."""
    for x in (*module.parameters(), *module.buffers()):
        x.place = THERE
    return module


def begin() -> None:
    """From now on, in this process: what the course puts on its best device says that it is on the accelerator."""
    import course_lib.lm.model
    import course_lib.lm.reward_head
    from transformers import PreTrainedModel

    for module in (course_lib.lm.model, course_lib.lm.reward_head):
        module.best_device = lambda: THERE
    torch.cuda.is_bf16_supported = lambda **_: False
    torch.cuda.mem_get_info = lambda device: (2**40, 2**40)
    torch.Generator = Generator
    mode = Pretended()
    load, to, init, copied = PreTrainedModel.from_pretrained.__func__, nn.Module.to, nn.Linear.__init__, nn.Parameter.__deepcopy__

    def from_pretrained(kind, *args, **kwargs):
        mode.__exit__(None, None, None)  # transformers makes tensors in a mode of its own, which this one disturbs
        try:
            return load(kind, *args, **kwargs)
        finally:
            mode.__enter__()

    def moved(module, *args, **kwargs):
        place = next((x for x in (*args, *kwargs.values()) if isinstance(x, (torch.device, str)) and is_device(x)), None)
        if place is not None:
            for x in (*module.parameters(), *module.buffers()):
                x.place = torch.device(place)
        kept = [x for x in args if x is not place]
        return to(module, *kept, **{k: x for k, x in kwargs.items() if x is not place}) if kept or kwargs else module

    def linear(module, *args, device=None, **kwargs):
        init(module, *args, **kwargs)
        for x in module.parameters():
            x.place = torch.device(device or CPU)

    def deepcopy(parameter, memo):
        twin = copied(parameter, memo)
        twin.place = where(parameter)
        return twin

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    nn.Module.to, nn.Module.cpu = moved, lambda module: moved(module, CPU)
    nn.Linear.__init__, nn.Parameter.__deepcopy__ = linear, deepcopy
    mode.__enter__()
