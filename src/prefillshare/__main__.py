from prefillshare.cli import main

main()
