"""The commands of ``gunicorn-cluster``, one module each.

``add(commands)`` adds the command's parser to argparse's subparsers, with the module's ``run`` as
the default of ``run``. ``run(options)`` runs the command and returns the exit status. Only the
module of the given command is imported.
"""
