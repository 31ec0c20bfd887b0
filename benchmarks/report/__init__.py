"""What people read: tables, pictures, pages, and the words for them."""
