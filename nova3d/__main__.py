"""`python -m nova3d VERB`."""

from nova3d.cli import main

if __name__ == "__main__":
    main()
