"""Functions of tensors, run as they stand, compiled, or as CUDA graphs.

What this is: how chat.py runs the four parts of a frame on a fast device, and the one place that
knows of fixed buffers. What this is not: the parts themselves (chat.py), which are the same
functions in every mode.

    python chat.py --device cuda            # compiled, and captured as graphs
    python chat.py --device cuda --eager    # as they stand

Unusual here:
- A CUDA graph reads and writes the same memory every time. So the tensors of a function's first
  call become its input buffers. Later arguments are copied into them, unless they already stand
  there: what another graph has written always does.
- The first call of a function runs it several times, to compile and to warm it up. It must be a
  call that may be repeated: a frame in which every conversation stands still.
"""
import torch

WARM_UP = 3  # calls before a capture: compilation, and memory that libraries take once


class Runner:
    """Calls functions of tensors, which return a tuple of tensors.

    fast: compile them; on CUDA, capture them as graphs too. Results of a captured function stand in
    its output buffers until its next call. timer(name of a function, call), where there is one,
    must return what call() returns."""

    def __init__(self, fast, device, timer=None):
        self.fast = fast
        self.timer = timer
        self.is_cuda = torch.device(device).type == "cuda"
        self.ready = {}  # name -> the compiled or captured function
        if fast:
            # The compiler counts how often it has met the same code, and gives up after some times.
            torch.compiler.reset()

    def run(self, function, tools, *tensors):
        """function(tools, *tensors). tools: what the function needs besides tensors; the same
        object in every call."""
        if self.timer:
            return self.timer(function.__name__, lambda: self.call(function, tools, tensors))
        return self.call(function, tools, tensors)

    def call(self, function, tools, tensors):
        if not self.fast:
            return function(tools, *tensors)
        name = function.__name__
        if name not in self.ready:
            self.ready[name] = self.prepare(function, tools, tensors)
        return self.ready[name](*tensors)

    def prepare(self, function, tools, tensors):
        """Compile a function, and capture it -> a function of tensors alone."""
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def call(*inputs):
            return compiled(tools, *inputs)
        if self.is_cuda:
            return self.capture(call, tensors)
        for _ in range(WARM_UP):
            call(*tensors)
        return call

    def capture(self, call, buffers):
        """A CUDA graph of call(*buffers) -> a function of tensors that replays it."""
        replay, outputs = record(call, buffers)

        def run(*inputs):
            for buffer, value in zip(buffers, inputs):
                if buffer.data_ptr() != value.data_ptr():
                    buffer.copy_(value)
            replay()
            return outputs
        return run


def record(call, buffers):
    """Record call(*buffers) as a CUDA graph -> (a function that replays it, its output buffers)."""
    # A thread's streams are those of its current GPU, which is the first one unless it is said.
    with torch.cuda.device(buffers[0].device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                call(*buffers)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call(*buffers)
    return graph.replay, outputs


class Packet:
    """All that goes to the device in a frame of B conversations, in one copy.

    Columns: 0 active, 1 hears, then the random numbers, then the user's samples or codes."""

    def __init__(self, batch, chances, size, device):
        """chances: random numbers of a conversation; size: samples or codes of the user's."""
        is_cuda = torch.device(device).type == "cuda"
        self.rows = torch.zeros(batch, 2 + chances + size, pin_memory=is_cuda)
        self.inputs = self.rows.to(device)
        self.user = 2 + chances      # the first column of samples or codes
        self.somebody_hears = True   # the first frame, which compiles all parts, is sent as it is

    def clear(self):
        """A new frame, in which every conversation stands still."""
        self.rows.zero_()
        self.somebody_hears = False

    def put(self, i, chances, values):
        """Conversation i goes on. values: samples or codes, or None for an empty channel."""
        self.rows[i, 0] = 1
        self.rows[i, 2:self.user] = chances
        if values is not None:
            self.rows[i, 1] = 1
            self.rows[i, self.user:] = torch.as_tensor(values)
            self.somebody_hears = True

    def send(self):
        """-> user [B, size], hears [B], active [B], chances, on the device. hears is None where
        nobody hears anything."""
        self.inputs.copy_(self.rows, non_blocking=True)
        user = self.inputs[:, self.user:]
        active = self.inputs[:, 0]
        chances = self.inputs[:, 2:self.user]
        hears = None
        if self.somebody_hears:
            hears = self.inputs[:, 1]
        return user, hears, active, chances
