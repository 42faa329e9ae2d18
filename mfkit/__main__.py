"""``python -m mfkit``, and what accelerate and torchrun launch."""

from mfkit.commands.main import main

if __name__ == "__main__":
    main()
