"""What an evaluation is asked for, and public benchmarks, without torch.
May import all packages above it.
"""
