"""What tests share: servers, services, factories, worlds; `judgement` and `engine` have what only those need."""
