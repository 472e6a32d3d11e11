create table if not exists products (
	id int primary key,
	name text not null,
	price_cents int not null,
	stock int not null check (stock >= 0)
);

create table if not exists reviews (
	product_id int not null references products,
	stars int not null check (stars between 1 and 5)
);

create table if not exists orders (
	id bigint generated always as identity primary key,
	product_id int not null references products,
	created_at timestamptz not null default now()
);

-- Both from one statement's snapshot: reviews only for products that are new.
with new as (
	insert into products
	select n, 'Product ' || n, 100 + n * 5, 1000 from generate_series(1, 100) n
	on conflict do nothing
	returning id
)
insert into reviews
select id, 1 + (id * n) % 5 from new, generate_series(1, 200) n;
