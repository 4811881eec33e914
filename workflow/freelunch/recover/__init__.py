"""Recovery: what makes a pruned network better by what is known of the dense one."""
