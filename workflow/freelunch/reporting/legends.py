"""How to read what a table or figure shows: the second half of its caption in the report."""

from __future__ import annotations

from typing import Literal

Kind = Literal["table", "figure"]

_COMPARED_TABLE = (
    "Only runs that are equal in everything else are compared, at the seeds that all have: a seed chooses the "
    "calibration text and so the masks. Perplexity is that of the joined text of the test split, cut into "
    "non-overlapping windows; lower is better. Seconds and peak memory are those of pruning and recovery. Values are "
    "means with their standard errors over seeds where there are several; where there is one run, ± is the standard "
    "error of the metric itself. ∞ and NaN are results that are not finite."
)
_COMPARED_FIGURE = (
    "Dense and not recovered models are horizontal lines where there is nothing said to the contrary. Scales of "
    "perplexity and drift are logarithmic; lower is better. What is compared is compared at the seeds that all have, "
    "which choose the calibration text and so the masks. With several seeds a mark is their mean and its bar the "
    "standard error over them. A hollow mark at the upper end stands for a value that is not finite."
)

_ACCURACY = (
    "Accuracy is the share of the test images that a network gets right, in percent; higher is better. Not repaired is "
    "the pruned network with the norms of the dense one. All that follows looks at a few training images without their "
    "labels: recalibration replaces the running mean and variance of batch norms, layer by layer or (cumulative) as an "
    "average over batches; repairs scale the outputs of every convolution so that they vary as the dense ones do, with "
    "one scale per layer, one per channel, or those shrunk towards that of the layer, and recalibrate; epsilon 1e-12 "
    "gives the norms a much smaller epsilon, and gains with which the dense network stays as it is, and recalibrates: "
    "the control of whether a repair does more than escape from epsilon; reconstruction solves every layer for its "
    "dense outputs on dense inputs, and recalibrates."
)

TABLES: dict[str, tuple[str, ...]] = {
    "accuracy": (
        _ACCURACY,
        "All layers together have the sparsity given; the allocation says how it is spread over them. Values are means "
        "with their standard errors over seeds, each with a dense network of its own; where there is one run, ± is the "
        "standard error of an accuracy measured on so many images.",
    ),
    "perplexity": (
        "Perplexity of the dense model, of the pruned model that is not recovered, and after recovery: that of the "
        "joined text of the test split, or of the validation split where a data set has no other, cut into "
        "non-overlapping windows of the length given; lower is better. Where a setting was run with several seeds, a "
        "cell is the mean and the standard error over them; where there is one run, ± is the standard error of the "
        "metric itself, and says nothing about seeds. A run that was not made is a dash; ∞ and NaN are results that "
        "are not finite. The CSV has all digits, standard errors and numbers of runs.",
    ),
    "cost": (
        "Wall-clock seconds and peak memory of pruning and recovery, without evaluation and without the dense "
        "activations and Gram matrices, which runs share; tokens trained on (of reconstruction the mean over windows; "
        "less where training stopped early); tokens that short trials took on top of them to find a learning rate, per "
        "window; and the fraction of the prunable weights that is zero.",
        "Means over seeds, with their standard error where there are several. Seconds depend on the machine. A run "
        "that is not recovered trains on no tokens. Where pruning and recovery are interleaved (pruning inputs: "
        "recovered) the seconds are those of recovery alone.",
    ),
    "window": (
        "Test perplexity by window: single matrices (by training, in closed form, as the official code does), the key "
        "and up projections each for itself (Matrix, … only) and together, halves of blocks, blocks, several blocks, "
        "the model.",
        _COMPARED_TABLE,
    ),
    "flow": (
        "Test perplexity by what windows are trained on: dense or sparse inputs, and targets that the dense window "
        "computes on the dense or on the same inputs.",
        _COMPARED_TABLE,
    ),
    "loss": ("Test perplexity by the loss between a window's output and its target.", _COMPARED_TABLE),
    "parametrization": (
        "Test perplexity by which parameters are trained, and how. The merge mismatch is the sum over windows of the "
        "validation loss after merging over the sum of the loss that training computed with, both after the last step; "
        "it is 1 where merging is exact.",
        _COMPARED_TABLE,
    ),
    "retraining": (
        "Local reconstruction, retraining and repair by the tokens trained on. Repair and what is not recovered train "
        "on none. Among runs that differ in other settings alone, such as the learning rate, the validation perplexity "
        "chooses.",
        _COMPARED_TABLE,
    ),
    "calibration_size": (
        "Test perplexity by the number of sequences that pruning saw (calibration sequences) and that recovery was "
        "trained on.",
        _COMPARED_TABLE,
    ),
    "learning_rate": (
        "For all runs that are equal but for learning rate and epochs, the one that the validation perplexity selects, "
        "the one that the test perplexity selects, and, if there is one, the run in which each window searches its own "
        "rate, of several lengths the one that the validation perplexity selects. Time and number of runs are those of "
        "the whole sweep, or of the searches of all lengths; seeds add up. What the test perplexity selects was chosen "
        "with the data it is measured on.",
        _COMPARED_TABLE,
    ),
    "criterion": (
        "Test perplexity by criterion: of the dense model, not recovered, and recovered. Bold are the best before and "
        "the best after recovery.",
        _COMPARED_TABLE,
    ),
    "scale": (
        "How far every criterion is from the best one of the same model: the logarithm of its test perplexity over "
        "that of the best, before and after recovery, by the number of parameters of the dense model. Seeds are "
        "paired.",
    ),
    "calibration": (
        "Test perplexity by the data set that pruning and recovery were calibrated with.",
        _COMPARED_TABLE,
    ),
    "seeds": (
        "Test perplexity over seeds, of every setting that was run with at least two. Each seed draws a calibration "
        "set of its own, and so has masks of its own, and shuffles the training in its own way.",
    ),
    "drift": (
        "Squared distance between the output of the last block and the dense model's, over the squared norm of the "
        "latter, median over tokens: of the block alone, on the dense model's input, and with all pruned and recovered "
        "blocks before it. Data is in the calibration distribution if it is of the set that was calibrated with.",
    ),
    "zero_shot": (
        "Accuracy in zero-shot tasks, in percent, and the mean over them: of guessing, of the dense model, not "
        "recovered, and recovered. Where a task has both, the accuracy is shown by log-likelihoods of answers (acc), "
        "and normalised, by those per character (acc_norm); the mean is that of acc. With one seed ± is the standard "
        "error over the questions of a task.",
    ),
    "published": (
        "Numbers that were published, each with where it was read, beside those of the suite, where model, criterion, "
        "pattern, data set, length and metric agree. They may differ in calibration data, seeds and precision.",
    ),
}
FIGURES: dict[str, tuple[str, ...]] = {
    "accuracy": (
        "Test accuracy against sparsity, one line per allocation; rows are networks, columns what was done to the "
        "pruned network. The dashed line is the dense network. Bars are standard errors over seeds.",
        _ACCURACY,
    ),
    "allocation": (
        "Accuracy under ERK less that under LAMP, in points, after recalibration, after repair and after "
        "reconstruction. Differences are of the same seeds, and so of the same dense networks; ± is their standard "
        "error. Bold are those of at least one point and more than two standard errors. Of few seeds an error is "
        "itself uncertain: by chance alone the mean of three is beyond two in about a fifth of all cases.",
    ),
    "density": (
        "Left the share of its weights that every convolution and the head keep at the highest sparsity, over depth. "
        "Right the relative repairability of each (arXiv:2605.25508): of its outputs on dense inputs the squared error "
        "that is left when every channel is scaled to its dense variance, over the error before; lower is better, and "
        "above 1 scaling adds to the error. Means over seeds.",
    ),
    "transition": (
        "Left what the best of the repairs gains over recalibration alone, in points of accuracy at the same seeds, "
        "against sparsity; hollow marks are recalibration with an epsilon of 1e-12. A convolution that "
        "a batch norm follows directly gives the same after recalibration whatever its scale, but for epsilon: a "
        "repair by scales can help only where variances come near it. Right, solid, the least variance of "
        "all channels that each norm reads at the highest sparsity and of all seeds, and, dotted, that of its median "
        "channel; the dashed line is epsilon.",
    ),
    "perplexity": (
        "Perplexity by criterion and pattern: of the pruned model that is not recovered, and after recovery. The "
        "dashed line is the dense model. The scale is logarithmic; lower is better. Perplexity is that of the joined "
        "text of the test split, or of the validation split where the axis says so, cut into non-overlapping windows "
        "of the length given at the axis. Values are printed above the marks, to three digits (the table has more). "
        "With several seeds a mark is their mean and its bar the standard error over them; with one run the bar is "
        "the standard error of the metric. Bars shorter than their mark are hidden by it. A hollow mark at the upper "
        "end stands for a value that is not finite.",
    ),
    "validation_loss": (
        "Validation loss of every window while it is trained, divided by its loss before training. The loss is that "
        "between the window's output and its target, on crops of the validation split.",
        "One line is one window, coloured by its depth in the network (blocks counted from 0); columns are criteria "
        "and patterns, rows are kinds of window. The vertical scale is logarithmic and the same in all panels; the "
        "dashed line at 1 is no change, and below it is better. Ratios are comparable between panels, losses of "
        "different windows are not. With several seeds a line is the mean over them. A panel says how many of its "
        "windows had losses that are not finite.",
    ),
    "gain": (
        "What reconstruction gained in every window: one minus the best validation loss over the loss before training, "
        "in percent. 100% would be an output equal to its target; 0% means that no trained state was better than the "
        "pruned one, which is then kept.",
        "Blocks are counted from 0. The halves of a block (attention, MLP) have separate marks; a window of several "
        "blocks is a bar over the blocks it spans. Gains of different kinds of window are relative to different "
        "losses: they say how much of its own error a window could repair, not which kind of window gives the better "
        "model (perplexity does). With several seeds a mark is the mean over them. A panel says how many of its "
        "windows had losses that are not finite.",
    ),
    "window": (
        "Test perplexity by window, from single matrices to the whole model, all else being equal. Lines are ways to "
        "treat norms and biases; windows of matrices are marks of their own: they are no sizes of the same thing. "
        "Exact is the closed-form solution of least squares, and official code a replica of how the authors' code "
        "trains matrices, with its defect. Matrix, … only trains some matrices, each for itself: the control of the "
        "window key / up, which trains them together.",
        _COMPARED_FIGURE,
    ),
    "memory": (
        "Test perplexity against the peak memory of pruning and reconstruction, one mark per window, all else being "
        "equal. Where norms and biases were trained in some runs, these are the ones shown.",
        _COMPARED_FIGURE,
    ),
    "flow": (
        "Test perplexity by what windows are trained on, all else being equal: inputs of the dense or of the pruned "
        "and recovered network, and targets that the dense window computes on the dense or on the same inputs.",
        _COMPARED_FIGURE,
    ),
    "loss": (
        "Test perplexity by the loss between a window's output and its target, all else being equal.",
        _COMPARED_FIGURE,
    ),
    "parametrization": (
        "Test perplexity against the number of parameters that reconstruction trains, one mark per parametrization, "
        "all else being equal. The horizontal scale is logarithmic. The table of the same name has what merging costs.",
        _COMPARED_FIGURE,
    ),
    "retraining": (
        "Test perplexity against the tokens trained on (of reconstruction the mean over windows, each of which sees "
        "them; searches of learning rates not counted), and against the compute of training: 6 operations per "
        "parameter of the model and token, of training and of searches of learning rates. Windows tile the network, so "
        "those of a reconstruction together take as many for a token as a pass over the model. Reconstruction has one "
        "window, flow and loss: attention and MLP apart, dense, mean squared error, if there are such runs. Retraining "
        "minimises the cross-entropy or the divergence from the dense model's predictions. Among runs that differ in "
        "other settings alone, such as the learning rate, the validation perplexity chooses. Repairs train on nothing "
        "and are horizontal lines.",
        _COMPARED_FIGURE,
    ),
    "calibration_size": (
        "Test perplexity against the tokens of calibration text that recovery was given, all else being equal. Pruning "
        "saw as many, or a fixed number; where it saw as many, so did the pruned model that is not recovered, which is "
        "a dotted line of its own.",
        _COMPARED_FIGURE,
    ),
    "learning_rate": (
        "Perplexity by learning rate, one colour per number of epochs, on validation data (solid) and test data "
        "(dashed), all else being equal. A ring is the run that the validation perplexity selects, a square the one "
        "that the test perplexity does; the latter uses test data to choose and flatters. A horizontal line is the "
        "test perplexity where each window searches its own rate, at the number of epochs that the validation "
        "perplexity selects. Seconds and runs of a selection are those of the whole sweep, or of the searches of all "
        "lengths; seeds add up.",
        _COMPARED_FIGURE,
    ),
    "drift": (
        "Squared distance between the output of every block and the dense model's, over the squared norm of the "
        "latter, median over tokens. Left: the block alone, on the dense model's input. Right: with all pruned and "
        "recovered blocks before it. Blocks are counted from 0; marks are on every fourth. Reconstructions are of one "
        "flow, loss, parametrization and the same matrices, which are named below the figure; least squares solved for "
        "exactly has the weights alone. Other flows of the window that the paper recommends are lines of their own. "
        "For each window and loss "
        "of retraining there is one setting, trained on the sequences that pruning saw; the validation perplexity "
        "chooses it where there are several. Repairs have no lines; the table of the same name has them.",
        _COMPARED_FIGURE,
    ),
    "criterion": (
        "Test perplexity by criterion, before and after recovery, all else being equal; panels are models and "
        "patterns.",
        _COMPARED_FIGURE,
    ),
    "scale": (
        "How far every criterion is from the best one, against the number of parameters of the dense model: the "
        "logarithm of its test perplexity over that of the best criterion of the same model, before (dashed) and after "
        "recovery (solid). Ratios are compared because models with different tokenizers cannot be in perplexity "
        "itself. Errors are over seeds, which are paired.",
    ),
    "calibration": (
        "Test perplexity by the data set that pruning and recovery were calibrated with, all else being equal; panels "
        "are what was measured on, and pruning.",
        _COMPARED_FIGURE,
    ),
    "zero_shot": (
        "Mean accuracy (acc) over zero-shot tasks, in percent, by criterion and pattern; higher is better. The dashed "
        "line is the dense model, the dotted one guessing. The table of the same name has the tasks.",
    ),
}


def legend(kind: Kind, name: str) -> tuple[str, ...]:
    """Paragraphs on a view; a comparison without a text of its own has what all comparisons share."""
    texts, shared = (TABLES, _COMPARED_TABLE) if kind == "table" else (FIGURES, _COMPARED_FIGURE)
    return texts.get(name, (shared,))
