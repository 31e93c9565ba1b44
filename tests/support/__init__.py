"""What tests share: projects, servers, archives, handlers, images."""
