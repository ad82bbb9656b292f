"""What tests share: servers, factories, worlds, evidence."""
