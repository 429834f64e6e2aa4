"""How the files that the package ships were made; nothing else imports this."""
