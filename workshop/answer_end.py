"""When the answer to a recording is over.

What this is: how long `chat.py --in` goes on after the end of its file. It serves chat.py. What
this is not: turn-taking. The model itself is never told whose turn it is.

    python chat.py --in question.wav --out answer.wav            # until the answer is over
    python chat.py --in question.wav --out answer.wav --tail 4   # this file is not asked
"""
import torch

QUIET = 2.0          # seconds without a word or a sound after which an answer is over
HESITATION = 4.0     # seconds in which the model may begin one
LONGEST_ANSWER = 60  # seconds after the file's end, at most
SILENT = 0.01        # root mean square, of full scale: what is quieter is no speech


class AnswerWatch:
    """Tells when the answer to a recording is over: QUIET seconds after its last word and its last
    audible sound.

    A model that has not begun has HESITATION seconds from the user's last sound on. Times are
    counted in frames."""

    def __init__(self, frames, frame_rate):
        """frames: what the user says, [N] samples each."""
        levels = torch.stack([frame.square().mean().sqrt() for frame in frames])
        audible = levels > levels.max() / 10
        self.user_end = int(audible.nonzero().max()) + 1 if audible.any() else 0
        self.frame_rate = frame_rate
        self.frames = 0            # until now
        self.answer_end = None     # the last frame with a word or a sound of the answer
        self.loudest = SILENT

    def add(self, thinks, model_audio):
        """A frame of the model's: whether it writes words in it, and its samples."""
        level = model_audio.square().mean().sqrt().item()
        self.loudest = max(self.loudest, level)
        self.frames += 1
        if thinks or level > max(SILENT, self.loudest / 30):
            self.answer_end = self.frames

    def answered(self):
        """Whether the model has spoken since the user's last sound."""
        return self.answer_end is not None and self.answer_end > self.user_end

    def over(self):
        """Whether nothing more is to come."""
        if self.answered():
            return self.frames - self.answer_end >= QUIET * self.frame_rate
        return self.frames - self.user_end >= HESITATION * self.frame_rate
