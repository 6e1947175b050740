"""The loss of a model on grids, by format and by class of token.

What this is: `eval.py --grids`, equation 3's four terms without their weights, teacher-forced. What
this is not: validation during training (train.py), which has packed rows. Serves eval.py.

    python eval.py --grids grids/ft2 --out results
"""
import torch
from tqdm import tqdm

import stream
import train
from workshop.batches import collate
from workshop.measures import number, spaced
from workshop.test_sets import DEFAULT_MOST
from workshop.training_set import Grids


@torch.no_grad()
def losses(model, grids):
    """Teacher-forced cross-entropy (equation 3's terms, without its weights) of n grids -> sums
    [n, 5] in nats, tokens [n, 5], by grid and class of stream.Loss."""
    equation = train.Equation3(model)
    ids = stream.Ids.of(model.config)
    device = model.lm_head.weight.device
    sums = []
    tokens = []
    for grid in grids:
        batch = collate([[stream.delay(grid, ids)]], len(grid) + stream.ACOUSTIC_DELAY, ids)
        terms = equation(*(tensor.to(device) for tensor in batch))
        sums.append(terms.cpu().double())
        tokens.append(train.count_tokens([batch]))
    return torch.stack(sums), torch.stack(tokens)


def count(run):
    """The part "loss, FORMAT" of results.Run, for each format of --grids. Raises ValueError for a
    folder without grids."""
    args = run.args
    grids = Grids(args.grids)
    for format in sorted(set(grids.formats)):
        places = [i for i, name in enumerate(grids.formats) if name == format]
        some = [grids[i] for i in spaced(places, args.most or DEFAULT_MOST)]
        bar = tqdm(some, desc=f"loss, {format}", unit="grid")
        sums, tokens = losses(run.partner.model, bar)
        numbers = {}
        for kind in stream.Loss:
            if kind == stream.Loss.NONE or not tokens[:, kind].any():
                continue
            values = torch.stack([sums[:, kind], tokens[:, kind]], 1).tolist()
            numbers[kind.name.lower()] = number(values, "nats")
        run.parts[f"loss, {format}"] = numbers, [], []
